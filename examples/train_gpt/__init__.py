"""Train a small GPT on the source of Python's standard library: `python -m examples.train_gpt`.

Plain JAX, Flax NNX, Optax, Orbax and chex: it runs on whatever devices `jax.devices()` lists.
"""
