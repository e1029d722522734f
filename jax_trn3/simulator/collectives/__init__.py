"""Collectives in time: who sends what to whom, over which links, and how long it takes.

`groups.py` says who takes part. `algorithms.py` (with `schedule.py`) makes steps of transfers of
it, whatever joins the chips; `network.py` knows the links, `layout.py` where ranks lie on them.
`plan.py` puts phases together; `closed_form.py` and `wide.py` give their time at once, `events.py`
by simulating every rank. `choose.py` chooses; `in_program.py` puts one among a core's other
instructions.
"""

from .choose import collective as collective
from .choose import planned as planned
from .choose import simulate as simulate
from .groups import Groups as Groups
from .groups import along as along
from .groups import listed as listed
from .groups import whole as whole
from .in_program import collective_in_program as collective_in_program
from .plan import ALGORITHMS as ALGORITHMS
from .plan import TORUS_LIMITS as TORUS_LIMITS
from .result import CollectiveTime as CollectiveTime
from .result import LocalTraffic as LocalTraffic
from .result import StepTime as StepTime
