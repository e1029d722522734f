"""`python -m examples.train_gpt`."""

import sys

from .main import main

try:
    main()
except KeyboardInterrupt:
    sys.exit("interrupted; --resume goes on from the latest checkpoint")
