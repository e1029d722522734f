"""Programs that show jax-trn3 at work."""
