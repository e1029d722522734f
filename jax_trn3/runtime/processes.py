"""Several processes, one platform: what jax.distributed.initialize() means for the inner client.

The inner XLA:CPU client needs a coordination service to learn of its peers' devices and to set up
gloo, XLA:CPU's collectives between processes. JAX's own service cannot serve it: XLA:CPU stores
its topology there under fixed keys, and JAX's CPU backend (JAX_PLATFORMS=trn3,cpu) already uses
them. So process 0 starts a second service, and tells the others where through the first.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import socket
from typing import Any

from jax._src import distributed
from jax._src.lib import _jax

_ADDRESS = "jax_trn3/coordinator"
_TIMEOUT_S = 60
# A peer that is gone must not keep this process from ending.
_SHUTDOWN_S = 5


@dataclasses.dataclass(frozen=True)
class Process:
    """One of `count` processes that share a topology; each has an equal part of its devices."""

    index: int = 0
    count: int = 1


ALONE = Process()


@dataclasses.dataclass(frozen=True)
class Peers:
    """A connection to the other processes. `service` is None in all but process 0."""

    client: Any
    collectives: Any
    service: Any


def devices_of(process: Process, num_devices: int, topology: str) -> range:
    """The ids of the devices that are attached to a process.

    ValueError if the devices cannot be divided equally.
    """
    if num_devices % process.count:
        raise ValueError(
            f"{process.count} processes cannot share the {num_devices} devices of topology "
            f"{topology!r} equally; choose another number of processes, or another topology "
            "(JAX_TRN3_TOPOLOGY)"
        )
    share = num_devices // process.count
    return range(process.index * share, (process.index + 1) * share)


def connect(process: Process) -> Peers:
    """Meets the other processes. RuntimeError without jax.distributed.initialize()."""
    jax_client = distributed.global_state.client
    if jax_client is None:
        raise RuntimeError(
            f"trn3 was started as process {process.index} of {process.count}, but the processes "
            "do not know each other: call jax.distributed.initialize() first"
        )
    service = None
    if process.index == 0:
        host = (distributed.global_state.coordinator_address or "localhost").rpartition(":")[0]
        port = _free_port()
        service = _jax.get_distributed_runtime_service(
            f"[::]:{port}", process.count, shutdown_timeout=_SHUTDOWN_S
        )
        jax_client.key_value_set(_ADDRESS, f"{host}:{port}")
    address = jax_client.blocking_key_value_get(_ADDRESS, _TIMEOUT_S * 1000)
    client = _jax.get_distributed_runtime_client(
        address,
        process.index,
        init_timeout=_TIMEOUT_S,
        shutdown_timeout=_SHUTDOWN_S,
        use_compression=True,
    )
    client.connect()
    peers = Peers(client, _jax.make_gloo_tcp_collectives(distributed_client=client), service)
    atexit.register(_leave, peers)
    return peers


def _leave(peers: Peers) -> None:
    for side in (peers.client, peers.service):
        if side is not None:
            with contextlib.suppress(Exception):  # a peer may be gone already
                side.shutdown()


def _free_port() -> int:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
