"""One rule a class of operations: what a good Trainium compiler would make of it."""

from collections.abc import Callable

from jax_trn3.hardware import Chip

from ..graph import Operation
from ..group import Group, Plan

Rule = Callable[[Group, Chip], Plan]

RULES: dict[str, Rule] = {}
"""By name, as in `Group.rule`."""

AUTHORED: set[str] = set()
"""Rules of programs that users write (kernels): one that does not fit is an error of theirs, and
said."""

OPENED: dict[str, Callable[[Operation], str]] = {}
"""By kind of operation, why one of them is timed by its decomposition; "" if it is not."""


def rule(name: str) -> Callable[[Rule], Rule]:
    """Enters a function into `RULES`. Kernels register theirs under an operation's own name
    ("trn3.dot_product_attention"), in place of ours."""

    def enter(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return enter


# Each enters its rules; they need what is above.
from . import attention as attention  # noqa: E402
from . import attention_backward as attention_backward  # noqa: E402
from . import convolution as convolution  # noqa: E402
from . import indexing as indexing  # noqa: E402
from . import matmul as matmul  # noqa: E402
from . import movement as movement  # noqa: E402
from . import mx as mx  # noqa: E402
from . import other as other  # noqa: E402
from . import reduction as reduction  # noqa: E402
from . import rows as rows  # noqa: E402
from . import sorting as sorting  # noqa: E402
