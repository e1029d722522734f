"""Host callbacks: from JAX's lowering to XLA:CPU, around the C API, which has no room for them.

JAX lowers a callback on the CPU to a custom call that carries its number, and gives the list of
Python functions to the client beside the program. A C API client drops that list. So the platform
hooks the one place where JAX has both in hand (compile_or_get_cached -> backend_compile_and_load),
writes a ticket into the module, and keeps the functions under the ticket until the compilation,
which happens on another thread, has handed them to XLA:CPU. From there on the executable owns them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jax._src import compiler as jax_compiler
from jaxlib.mlir import ir

from .program import Program

_TICKET = "mhlo.trn3_host_callbacks"
_CALL_TARGETS = (
    b"xla_ffi_python_cpu_callback",
    b"xla_ffi_partitioned_python_cpu_callback",
    b"xla_buffer_python_cpu_callback",
)

_tickets = itertools.count(1)
_functions: dict[int, Sequence[Callable[..., Any]]] = {}
_lock = threading.Lock()


def install_callbacks(platform: str) -> None:
    """Hooks JAX's compilation for `platform`; once a process."""
    upstream = jax_compiler.backend_compile_and_load

    def backend_compile_and_load(
        backend: Any, module: ir.Module, executable_devices: Any, options: Any, host_callbacks: Any
    ) -> Any:
        if not host_callbacks or backend.platform != platform:
            return upstream(backend, module, executable_devices, options, host_callbacks)
        ticket = next(_tickets)
        with _lock:
            _functions[ticket] = tuple(host_callbacks)
        with module.context:
            number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), ticket)
        module.operation.attributes[_TICKET] = number
        try:
            return upstream(backend, module, executable_devices, options, [])
        finally:
            del module.operation.attributes[_TICKET]
            with _lock:
                del _functions[ticket]

    jax_compiler.backend_compile_and_load = backend_compile_and_load


def has_callbacks(program: Program) -> bool:
    """Whether a program calls back to Python."""
    return program.mentions(*_CALL_TARGETS)


def compile_with_callbacks(client: Any, program: Program, devices: Any, options: Any) -> Any:
    """XLA:CPU's executable of a program, with the callbacks that it calls, if any."""
    if not has_callbacks(program):
        return client.compile_and_load(program.code, devices, options)
    module = program.module()
    with module.context:
        ticket = module.operation.attributes.get(_TICKET)
        number = None if ticket is None else ir.IntegerAttr(ticket).value
    functions = _functions.get(number) if number is not None else None
    if functions is None:
        raise NotImplementedError(
            "the program calls back to Python functions of another process or time; host "
            "callbacks work in programs that jax.jit compiles, not in deserialized ones"
        )
    return client.compile_and_load(module, devices, options, functions)
