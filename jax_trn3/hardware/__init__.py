"""The machine as data: NeuronCores, chips and their arrangement, every number with its source."""

from .chip import TRAINIUM1 as TRAINIUM1
from .chip import TRAINIUM2 as TRAINIUM2
from .chip import TRAINIUM3 as TRAINIUM3
from .chip import Chip as Chip
from .core import NEURON_CORE_V2 as NEURON_CORE_V2
from .core import NEURON_CORE_V3 as NEURON_CORE_V3
from .core import NEURON_CORE_V4 as NEURON_CORE_V4
from .core import NeuronCore as NeuronCore
from .dma import DmaEngines as DmaEngines
from .engine import ComputeEngine as ComputeEngine
from .engine import SyncEngine as SyncEngine
from .engine import TensorEngine as TensorEngine
from .figure import Confidence as Confidence
from .figure import Figure as Figure
from .figure import Table as Table
from .figure import extrapolated as extrapolated
from .figure import inferred as inferred
from .figure import published as published
from .figure import rounded as rounded
from .topology import DEFAULT_TOPOLOGY as DEFAULT_TOPOLOGY
from .topology import CoreLocation as CoreLocation
from .topology import Server as Server
from .topology import Topology as Topology
from .topology import get_topology as get_topology
from .topology import topology_names as topology_names
