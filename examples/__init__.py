"""Programs that show jax-trn3 at work; none of them imports it."""
