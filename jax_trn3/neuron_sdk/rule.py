"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass

from .detect_equations import DtypeDetector, EquationDetector
from .detect_operations import OperationDetector
from .finding import Severity


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Something that the Neuron SDK would refuse, change or do slowly.

    Exactly one of `equation`, `dtype` and `operation` is given: whether the rule is about what JAX
    traced, about element types where they first appear, or about what is lowered to StableHLO.
    """

    id: str
    severity: Severity

    says: str
    """What the SDK's pages say of it."""

    way_out: str
    """What to write instead."""

    pages: tuple[str, ...]
    """Where: files of github.com/aws-neuron/aws-neuron-sdk at `SDK`, or of JAX (jax/...)."""

    equation: EquationDetector | None = None
    dtype: DtypeDetector | None = None
    operation: OperationDetector | None = None
