"""jax.ffi: targets registered for the platform are XLA:CPU's, which runs the values."""

from __future__ import annotations

from typing import Any

from jax._src.lib import xla_client

_HOST = "Host"  # XLA's own name of the CPU


def forward_ffi_targets(platform: str) -> None:
    """Makes jax.ffi.register_ffi_target(..., platform=`platform`) and register_ffi_type work, also
    for what was registered before; once a process."""

    def register_target(name: str, function: Any, _: str, *version_and_traits: Any) -> None:
        xla_client._xla.register_custom_call_target(name, function, _HOST, *version_and_traits)

    xla_client.register_custom_call_handler(platform, register_target)
    xla_client.register_custom_type_handler(platform, xla_client._xla.register_custom_type)
