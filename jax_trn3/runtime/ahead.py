"""Compiling ahead of time, for a topology that is not attached."""

from __future__ import annotations

import functools
from typing import Any

from jax._src.lib import xla_client

from jax_trn3 import compiler

from .executable import Executable
from .topology import TopologyDescription

# XLA:CPU gives every device a thread. More than an UltraServer has is a matter of estimates, which
# need no compilation for each device.
_MAX_DEVICES = 4096


@functools.lru_cache(maxsize=1)  # it has up to three threads a device
def _compiler_for(num_devices: int) -> Any:
    """An XLA:CPU client that nothing runs on."""
    return xla_client.make_cpu_client(num_devices=num_devices)


def compile_ahead(
    topology: TopologyDescription, code: bytes, format: str, options: bytes
) -> Executable:
    """See pjrt.api.Platform.compile. NotImplementedError for more than 4096 devices."""
    num_devices = len(topology.devices)
    if num_devices > _MAX_DEVICES:
        raise NotImplementedError(
            f"topology {topology.hardware.name!r} has {num_devices} devices; programs are compiled "
            f"for at most {_MAX_DEVICES}"
        )
    client = _compiler_for(num_devices)
    program = compiler.Program.parse(code, format)
    values = compiler.compile_values(client, client.devices(), program, options)
    topology.check_fits(values)
    return Executable(values, topology.hardware)
