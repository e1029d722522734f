"""The reference executor: a kernel one operation after another, slow and obvious, with checks."""

from .execute import run as run
from .execute import run_together as run_together
