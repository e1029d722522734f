"""What programs would cost: estimates of shapes alone, profiles of what ran, and tables of them."""

from .estimate import estimate as estimate
from .profile import Profile as Profile
from .profile import Ran as Ran
from .profile import profile as profile
from .result import Estimate as Estimate
from .result import Line as Line
