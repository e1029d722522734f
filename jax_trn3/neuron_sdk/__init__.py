"""What the real Neuron SDK would refuse or change in a program, as its documentation says."""

from .check import check as check
from .finding import Finding as Finding
from .finding import Findings as Findings
from .rule import Rule as Rule
from .table import RULES as RULES
from .table import SDK as SDK
