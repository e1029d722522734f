"""What programs would cost: estimates of shapes alone, profiles of what ran, and tables of them."""

from .estimate import estimate as estimate
from .result import Estimate as Estimate
from .result import Line as Line
