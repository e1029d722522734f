"""What an engine's sequencer does without its engine: registers, barriers, nothing.

Registers are virtual, as in NKI: a program names them (`Register("i")`), a compiler gives each one
of the sequencer's physical ones.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.hardware import NeuronCore

from .cost import sequencer_step
from .dtypes import ANY, DTYPES
from .spec import Engine, Instruction, Register, instruction, reads, writes

_SEQUENCERS: tuple[Engine, ...] = ("sync", "tensor", "vector", "scalar", "gpsimd")
_SCALARS = tuple(
    name for name in ANY if DTYPES[name].bytes <= 4 and DTYPES[name].packed == 1
)  # fmt: skip
_REGISTERS = dict[str, jax.Array]


def _register(*params: str) -> Any:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        for param in params:
            value = instruction.get(param)
            if not isinstance(value, Register):
                yield f"{param} is {value!r}; it must be a Register"

    rule.__doc__ = f"{', '.join(params)}: a Register."
    return rule


def _one_element(name: str) -> Any:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        if instruction[name].elements != 1:
            yield f"{name} is {list(instruction[name].shape)}; a register takes one element"

    rule.__doc__ = f"{name}: one element."
    return rule


def _integer(param: str) -> Any:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        value = instruction.get(param)
        if isinstance(value, int) and not -(2**31) <= value < 2**32:
            yield f"{param} is {value}; a register has 32 bits"
        elif value is not None and not isinstance(value, (int, Register)):
            yield f"{param} is {value!r}; allowed: an integer or a Register"

    rule.__doc__ = f"{param}: an integer of 32 bits, or a Register."
    return rule


def _read(registers: _REGISTERS | None, register: Register) -> jax.Array:
    if register.name not in (registers or {}):
        raise ValueError(f"register {register.name} is read before anything is moved into it")
    return (registers or {})[register.name]


def _word(value: int) -> jax.Array:
    """An integer's 32 bits as int32."""
    return jnp.asarray(value - 2**32 if value >= 2**31 else value, jnp.int32)


@instruction(
    engines=_SEQUENCERS,
    cost=sequencer_step,
    rules=(_register("register"), _integer("value")),
    source="nki/api/nki/isa/__init__.py, register_alloc",
    state="registers",
)
def register_alloc(
    *, register: Register, value: int | None = None, state: _REGISTERS | None = None
) -> tuple[Any, _REGISTERS]:
    """A new register, holding `value` if it is given."""
    rest = {name: held for name, held in (state or {}).items() if name != register.name}
    return (), rest if value is None else rest | {register.name: _word(value)}


@instruction(
    engines=_SEQUENCERS,
    cost=sequencer_step,
    rules=(_register("dst"), _integer("src")),
    source="nki/api/nki/isa/__init__.py, register_move",
    state="registers",
)
def register_move(
    *, dst: Register, src: int | Register, state: _REGISTERS | None = None
) -> tuple[Any, _REGISTERS]:
    """`dst = src`, an integer or another register's value."""
    value = _read(state, src) if isinstance(src, Register) else _word(src)
    return (), (state or {}) | {dst.name: value}


@instruction(
    reads("src", "sbuf", "hbm", dtypes=_SCALARS),
    engines=_SEQUENCERS,
    cost=sequencer_step,
    rules=(_register("dst"), _one_element("src")),
    source="nki/api/nki/isa/__init__.py, register_load",
    state="registers",
)
def register_load(
    src: jax.Array, *, dst: Register, state: _REGISTERS | None = None
) -> tuple[Any, _REGISTERS]:
    """`dst = src`, an element of at most 32 bits from SBUF or HBM: 32-bit types bit by bit,
    narrower integers by value, other types by their bits, zeros above (narrow types: our reading).

    No cost is published: that of any instruction of a sequencer, without the access to memory.
    """
    return (), (state or {}) | {dst.name: _bits(src.reshape(()))}


def _bits(value: jax.Array) -> jax.Array:
    if value.dtype == jnp.bool_ or (
        jnp.issubdtype(value.dtype, jnp.integer) and value.dtype.itemsize < 4
    ):
        return value.astype(jnp.int32)
    if value.dtype.itemsize < 4:
        unsigned = jnp.uint8 if value.dtype.itemsize == 1 else jnp.uint16
        return lax.bitcast_convert_type(value, unsigned).astype(jnp.int32)
    return lax.bitcast_convert_type(value, jnp.int32)


@instruction(
    writes("dst", "sbuf", "hbm", dtypes=_SCALARS),
    engines=_SEQUENCERS,
    cost=sequencer_step,
    rules=(_register("src"), _one_element("dst")),
    source="nki/api/nki/isa/__init__.py, register_store",
    state="registers",
)
def register_store(
    *, src: Register, out: jax.ShapeDtypeStruct, state: _REGISTERS | None = None
) -> tuple[jax.Array, _REGISTERS]:
    """`dst = src`, into one element in SBUF or HBM: the register's lowest bits, as `register_load`
    reads them."""
    word = _read(state, src)
    if out.dtype == jnp.bool_ or jnp.issubdtype(out.dtype, jnp.integer):
        return word.astype(out.dtype), state or {}
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[out.dtype.itemsize]
    return lax.bitcast_convert_type(word.astype(unsigned), out.dtype), state or {}


def _both_cores(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """cores (0, 1): the two that a logical core is made of."""
    if tuple(instruction.get("cores", (0, 1))) != (0, 1):
        yield f"cores is {instruction.get('cores')}; allowed: (0, 1)"


@instruction(
    reads("data", "hbm", dtypes=ANY),
    engines=("gpsimd", "sync", "tensor", "vector", "scalar"),
    cost=sequencer_step,
    rules=(_both_cores,),
    source="nki/api/nki/isa/__init__.py, core_barrier",
    since=3,
)
def core_barrier(data: jax.Array, *, cores: tuple[int, ...] = (0, 1)) -> Any:
    """Goes on when every core of `cores` has come this far; `data` in HBM is what they share.

    It moves nothing: each core signals a semaphore of the other and waits for its own. The time
    that a signal takes between cores is not published and not part of the cost.
    """
    return ()


@instruction(
    engines=_SEQUENCERS,
    cost=sequencer_step,
    source="tools/neuron-explorer/profile-schema-reference.rst: NOP, EVENT_SEMAPHORE",
)
def nop() -> Any:
    """Nothing, but to wait for semaphores and to signal them. Not an instruction of NKI's:
    compilers put it in."""
    return ()
