"""`estimate`: what any program would cost on any topology. Runs nothing, allocates nothing."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jax_trn3.compiler.timing.graph import DeviceProgram
from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.residency import residency
from jax_trn3.compiler.timing.schedule import Machine, schedule
from jax_trn3.hardware import Topology, get_topology

from .result import Estimate

_PLATFORM = "trn3"


def estimate(
    fun: Callable[..., Any],
    *args: Any,
    topology: str | Topology = "trn3-chip",
    lnc: int = 1,
    static_argnums: int | Sequence[int] | None = None,
    while_trip_count: int | None = None,
    **kwargs: Any,
) -> Estimate:
    """What `fun(*args, **kwargs)` would cost.

    **Arguments:**

    - `fun`: A function, jitted or not. Its shardings say which devices it runs on: a mesh of real
      devices, of `jax.experimental.topologies.get_topology_desc`, or an `AbstractMesh`. Without one
      it runs on a single device.
    - `args`, `kwargs`: Arrays, or `jax.ShapeDtypeStruct`s, with or without shardings.
    - `topology`: Name or `Topology` of the machine. Devices of the mesh lie on it in order.
    - `lnc`: Physical cores that make up a device, where `topology` is a name.
    - `static_argnums`: As for `jax.jit`, where `fun` is not jitted yet.
    - `while_trip_count`: How often to take loops whose count data decide.

    **Returns:** An `Estimate`, of one run. A program that does not fit is an estimate that says so.

    **Raises:** `ValueError` for a topology that is unknown or too small for the mesh and for a loop
    whose count is not known; whatever `jax.jit` raises for a program that it cannot trace.

    >>> jax_trn3.estimate(step, params, batch, topology="trn3-gen2").time_s
    """
    machine = get_topology(topology, lnc) if isinstance(topology, str) else topology
    with _collecting_later():
        program = _device_program(fun, args, kwargs, static_argnums)
        _check_size(program, machine)
        return of_program(program, machine, while_trip_count)


def of_program(
    program: DeviceProgram, topology: Topology, while_trip_count: int | None = None
) -> Estimate:
    """The estimate of one run of a program that has been read."""
    machine = Machine(topology, program.mesh, program.trip_counts, while_trip_count)
    timed = schedule(program, machine)
    return Estimate(program.name, topology, program.mesh, timed, residency(program))


@contextlib.contextmanager
def _collecting_later() -> Iterator[None]:
    """Puts garbage collection off: almost everything that is made stays, and looking through it
    again and again takes an eighth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _device_program(
    fun: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    static_argnums: int | Sequence[int] | None,
) -> DeviceProgram:
    if not hasattr(fun, "trace"):
        fun = jax.jit(fun, static_argnums=static_argnums)
    elif static_argnums is not None:
        raise ValueError("static_argnums belongs to the jax.jit that made the function")
    lowered = fun.trace(*args, **kwargs).lower(lowering_platforms=(_PLATFORM,))
    return device_program(lowered.compiler_ir("stablehlo"))


def _check_size(program: DeviceProgram, topology: Topology) -> None:
    if program.mesh.size > topology.num_devices:
        axes = " x ".join(f"{name}={size}" for name, size in program.mesh.axes)
        raise ValueError(
            f"{program.name} runs on a mesh of {program.mesh.size} devices ({axes}); "
            f"{topology.name} has {topology.num_devices}. Take a larger topology or a smaller mesh"
        )
