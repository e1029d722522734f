"""What MXFP8 does to a training run: `python examples/mxfp8_training.py`.

Trains the same small transformer in float32, bf16, MXFP8, MXFP4 and naive FP8, several seeds each,
stresses the formats where they part, and says what can be told from noise. `--quick` for a look;
docs/mxfp8_training.md for what it found. The study itself is in `mxfp8_study/`.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.mxfp8_study.main import main

if __name__ == "__main__":
    main()
