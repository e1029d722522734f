"""Several processes, one platform: what jax.distributed.initialize() means for the inner client.

The inner XLA:CPU client needs a coordination service to learn of its peers' devices and to set up
gloo, XLA:CPU's collectives between processes. JAX's own service cannot serve it: XLA:CPU stores
its topology there under fixed keys, and JAX's CPU backend (JAX_PLATFORMS=trn3,cpu) already uses
them. So process 0 starts a second service, and tells the others where through the first.
"""

from __future__ import annotations

import atexit
import dataclasses
import socket
import sys
from collections.abc import Callable
from typing import Any

from jax._src import distributed
from jax._src.lib import _jax

from jax_trn3 import pjrt

from . import liveness

_SERVICE, _LIVENESS = "jax_trn3/service", "jax_trn3/liveness"  # keys in JAX's service
_TIMEOUT_S = 60
_SHUTDOWN_S = 300  # as jax.distributed waits for the others, by default
_LOST_S = 20  # and once one is lost, for those that are left


@dataclasses.dataclass(frozen=True)
class Process:
    """One of `count` processes that share a topology; each has an equal part of its devices."""

    index: int = 0
    count: int = 1


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


def connect(process: Process, on_loss: Callable[[int], None]) -> tuple[Any, Any]:
    """Meets the other processes: a client of the coordination service, and gloo over it.

    on_loss: called with the number of a process that is lost, on a thread of its own.
    RuntimeError without jax.distributed.initialize().
    """
    jax_client = distributed.global_state.client
    if jax_client is None:
        raise RuntimeError(
            f"trn3 was started as process {process.index} of {process.count}, but the processes "
            "do not know each other: call jax.distributed.initialize() first"
        )
    host = (distributed.global_state.coordinator_address or "localhost").rpartition(":")[0]
    service = None
    if process.index == 0:
        port = _free_port()
        # Recoverable: it then leaves it to us what the loss of a process means.
        service = _jax.get_distributed_runtime_service(
            f"[::]:{port}", process.count, recoverable=True
        )
        listener = liveness.listen()
        jax_client.key_value_set(_LIVENESS, str(listener.getsockname()[1]))
        jax_client.key_value_set(_SERVICE, str(port))
        connections = liveness.accept(listener, process.count)
    else:
        port = int(jax_client.blocking_key_value_get(_LIVENESS, _TIMEOUT_S * 1000))
        connections = liveness.join(host.strip("[]"), port, process.index)
    port = int(jax_client.blocking_key_value_get(_SERVICE, _TIMEOUT_S * 1000))
    client = _jax.get_distributed_runtime_client(
        f"{host}:{port}",
        process.index,
        init_timeout=_TIMEOUT_S,
        shutdown_on_destruction=False,
        use_compression=True,
    )
    client.connect()
    collectives = _jax.make_gloo_tcp_collectives(distributed_client=client)
    watch = liveness.Watch(connections, on_loss)
    atexit.register(_leave, process, watch, client, service)
    return client, collectives


def _leave(process: Process, watch: liveness.Watch, client: Any, service: Any) -> None:
    """Ends the connections in an order in which nobody finds the service gone: jaxlib would abort
    the process for that."""
    if getattr(sys, "last_value", None) is not None:
        watch.lose(process.index)  # an exception ends this process, and leaves the others waiting
    if process.index == 0:
        watch.wait_for_farewells(_SHUTDOWN_S)
    if watch.has_lost:
        _KEPT.append((client, service, _forget_jax_service()))
        pjrt.keep(_KEPT)
    else:
        client.shutdown()
        if service is not None:
            service.shutdown()
    watch.say_farewell()
    if process.index == 0 and watch.has_lost:
        watch.wait_for_ends(_LOST_S)  # their connections to both services are open


_KEPT: list[Any] = []


def _forget_jax_service() -> tuple[Any, ...]:
    """JAX's ends of its connections, which it then has not: once a process is lost, it would wait
    for it for minutes, in jax.distributed.shutdown(), and then abort this one."""
    state = distributed.global_state
    kept = state.client, state.service, state.preemption_sync_manager
    state.client = state.service = state.preemption_sync_manager = None
    return kept


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]
