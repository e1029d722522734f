"""What microscaling formats do to a training run: `python examples/mxfp8_training.py`."""
