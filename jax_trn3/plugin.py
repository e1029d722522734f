"""The platform ``trn3``: joins the PJRT shim, the runtime and the lowering rules."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jaxlib
from jaxlib.mlir.dialects import stablehlo

from jax_trn3 import compiler, hardware, ops, pjrt, runtime
from jax_trn3.runtime import topology as topologies
from pallas_trn3.lowering import lower_kernels

from ._version import __version__

PLATFORM = "trn3"

# Below the CPU's 0: the simulator is there for those who ask for it by name (JAX_PLATFORMS=trn3,cpu
# or jax.devices("trn3")), and takes the default away from nobody.
PRIORITY = -1

# topology, lnc: as JAX_TRN3_TOPOLOGY and JAX_TRN3_LNC. The others are JAX's, under
# jax.distributed.initialize().
_CLIENT_OPTIONS = {"topology", "lnc", "node_id", "num_nodes"}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


class Platform:
    """Implements pjrt.Platform."""

    @property
    def version(self) -> str:
        return f"jax-trn3 {__version__} (values: XLA:CPU, jaxlib {jaxlib.__version__})"

    @functools.cached_property
    def attributes(self) -> dict[str, pjrt.api.Attribute]:
        # Without these, JAX hands over programs in a StableHLO of twelve weeks ago.
        return {
            "stablehlo_current_version": _version(stablehlo.get_current_version()),
            "stablehlo_minimum_version": _version(stablehlo.get_minimum_version()),
            "xla_version": 2,
            "jax_trn3_version": __version__,
        }

    def create_client(self, options: Mapping[str, Any]) -> pjrt.Client:
        unknown = set(options) - _CLIENT_OPTIONS
        if unknown:
            raise ValueError(
                f"unknown option {sorted(unknown)[0]!r} for a client of {PLATFORM}; there are "
                f"{', '.join(sorted(_CLIENT_OPTIONS))}"
            )
        ops.check_environment()
        name = str(options.get("topology", environment_topology()))
        topology = hardware.get_topology(name, lnc=int(options.get("lnc", environment_lnc())))
        process = runtime.Process(int(options.get("node_id", 0)), int(options.get("num_nodes", 1)))
        return runtime.Client(self._describe(topology, process), process)

    def create_topology(self, name: str, options: Mapping[str, Any]) -> pjrt.TopologyDescription:
        topology = topologies.topology_of(name or environment_topology(), options)
        return self._describe(topology)

    def deserialize_topology(self, data: bytes) -> pjrt.TopologyDescription:
        return self._describe(topologies.deserialize_topology(data))

    def compile(
        self, topology: runtime.TopologyDescription, code: bytes, format: str, options: bytes
    ) -> pjrt.Executable:
        return runtime.compile_ahead(topology, code, format, options)

    def _describe(
        self, topology: hardware.Topology, process: runtime.Process | None = None
    ) -> runtime.TopologyDescription:
        return runtime.TopologyDescription(topology, self.version, process)


def environment_topology() -> str:
    """JAX_TRN3_TOPOLOGY, or the default (one chip)."""
    return os.environ.get("JAX_TRN3_TOPOLOGY") or hardware.DEFAULT_TOPOLOGY


def environment_lnc() -> int:
    """JAX_TRN3_LNC: physical cores per logical NeuronCore, 1 (the default) or 2."""
    text = os.environ.get("JAX_TRN3_LNC") or "1"
    if text not in ("1", "2"):
        raise ValueError(f"JAX_TRN3_LNC must be 1 or 2, got {text!r}")
    return int(text)


@functools.cache
def platform() -> Platform:
    """The platform; the shim asks for it when a C program loads the library without JAX."""
    return Platform()


@functools.cache
def initialize() -> None:
    """Registers the platform with JAX, which calls this through the entry point `jax_plugins`."""
    pjrt.register(PLATFORM, platform(), priority=PRIORITY)
    ops.adopt_cpu_rules(PLATFORM)
    ops.lower_host_callbacks(PLATFORM)
    ops.lower_ragged_all_to_all(PLATFORM)
    ops.lower_scaled_dots(PLATFORM)
    ops.lower_products(PLATFORM)
    lower_kernels(PLATFORM)
    ops.forward_ffi_targets(PLATFORM)
    compiler.install_callbacks(PLATFORM)
    compiler.serve_persistent_cache(PLATFORM)
    compiler.compile_without_devices(PLATFORM)
    _profile_if_asked()


def _profile_if_asked() -> None:
    """JAX_TRN3_PROFILE: a directory for a profile of the whole process."""
    directory = os.environ.get("JAX_TRN3_PROFILE")
    if directory:
        from jax_trn3.estimates.profile import profile_until_exit

        profile_until_exit(directory)
