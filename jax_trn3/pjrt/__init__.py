"""The PJRT C API in Python: a shim in C, and the classes a device implements. Knows no device."""

from .api import Array as Array
from .api import Client as Client
from .api import DeviceDescription as DeviceDescription
from .api import Executable as Executable
from .api import ExecutableMetadata as ExecutableMetadata
from .api import LoadedExecutable as LoadedExecutable
from .api import MemorySpace as MemorySpace
from .api import MemoryStats as MemoryStats
from .api import Platform as Platform
from .api import TopologyDescription as TopologyDescription
from .errors import PjrtError as PjrtError
from .errors import StatusCode as StatusCode
from .register import register as register
