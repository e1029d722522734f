"""What programs would cost: estimates of shapes alone, profiles of what ran, and tables of them."""

from .compare import Comparison as Comparison
from .compare import compare as compare
from .estimate import estimate as estimate
from .profile import Profile as Profile
from .profile import Ran as Ran
from .profile import profile as profile
from .result import Estimate as Estimate
from .result import Line as Line
from .summary import render as render
from .summary import summary as summary
from .views import VIEWS as VIEWS
from .views import save as save
