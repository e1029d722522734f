"""The machine as data: NeuronCores, chips and their arrangement, every number with its source."""

from .chip import TRAINIUM1 as TRAINIUM1
from .chip import TRAINIUM2 as TRAINIUM2
from .chip import TRAINIUM3 as TRAINIUM3
from .chip import Chip as Chip
from .core import NEURON_CORE_V2 as NEURON_CORE_V2
from .core import NEURON_CORE_V3 as NEURON_CORE_V3
from .core import NEURON_CORE_V4 as NEURON_CORE_V4
from .core import NeuronCore as NeuronCore
from .topology import DEFAULT_TOPOLOGY as DEFAULT_TOPOLOGY
from .topology import CoreLocation as CoreLocation
from .topology import Topology as Topology
from .topology import get_topology as get_topology
