"""Random numbers on VectorE and GpSimdE: a generator in every lane.

NeuronCore-v4 runs XORWOW (Marsaglia, "Xorshift RNGs", 2003) with four generators a lane on VectorE
and one on GpSimdE; each is six uint32: x, y, z, w, v, d. Before it VectorE had an LFSR of which
nothing is published: here it is XORWOW, too, so that numbers of Trainium1 and 2 are not the
hardware's. Undocumented for NeuronCore-v4 and chosen here: the order of the six in memory, that
element i comes from generator i mod 4, how a seed fills the state, and how bits become floats (24
of them).
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.hardware import NeuronCore
from jax_trn3.numerics.hardware_layout import MAX_PARTITIONS

from .cost import engine_cycles, engine_of, streaming
from .dtypes import FLOATS, INTEGERS
from .rules import engine_since, partition_scalars
from .spec import Instruction, Work, instruction, reads, writes

WORDS = 6
"""Words of one XORWOW generator."""

GENERATORS = {"vector": 4, "gpsimd": 1}
"""Generators of one lane, by engine (trainium3_arch.rst, "XORWOW-based PRNG"; nki.isa
rand_set_state)."""

_WEYL = 362437  # Marsaglia's increment of d
_UNSEEDED = "the generator has no state; begin with set_rng_seed or rand_set_state"

_INTEGERS = tuple(dtype for dtype in INTEGERS if dtype != "bool_")
_RATE = "random"


def _random_work(instruction: Instruction, core: NeuronCore) -> Work:
    """One element a cycle, or what the engine's table says: NeuronCore-v4's VectorE makes four
    (trainium3_arch.rst). Before it no cost is published."""
    engine = engine_of(instruction, core)
    mode = _RATE if _RATE in engine.elements_per_cycle else "1x"
    return Work(engine_cycles(engine, instruction["dst"].free_size, mode))


def _state_size(name: str) -> Any:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        words = GENERATORS[instruction.engine] * WORDS
        if instruction[name].free_size != words:
            yield (
                f"{name} has {instruction[name].free_size} words a partition; the state of "
                f"{instruction.engine} has {words}"
            )

    rule.__doc__ = f"{name}: 24 words a partition for vector, 6 for gpsimd."
    return rule


def _one_seed(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """One seed of 32 bits."""
    seed = instruction["src_seeds"]
    if seed.elements != 1:
        yield f"src_seeds is {list(seed.shape)}; allowed: [1, 1]"


def _range(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """min below max, where both are numbers."""
    low, high = instruction.get("min"), instruction.get("max")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not low < high:
        yield f"min {low} is not below max {high}"


def _step(state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Generators [..., 6] -> their next state and their next 32 bits."""
    x, y, z, w, v, d = (state[..., i] for i in range(WORDS))
    t = x ^ (x >> 2)
    v, d, shifted = (v ^ (v << 4)) ^ (t ^ (t << 1)), d + jnp.uint32(_WEYL), (y, z, w, v)
    return jnp.stack([*shifted, v, d], axis=-1), v + d


def random_bits(state: jax.Array | None, out: jax.ShapeDtypeStruct) -> tuple[jax.Array, jax.Array]:
    """uint32 of out's shape [P, ...] and the new state [P, generators * 6]."""
    if state is None:
        raise ValueError(_UNSEEDED)
    partitions = out.shape[0]
    generators = state.reshape(partitions, -1, WORDS)
    count = out.size // partitions
    steps = -(-count // generators.shape[1])
    last, drawn = lax.scan(lambda s, _: _step(s), generators, None, length=steps)
    rows = jnp.moveaxis(drawn, 0, 1).reshape(partitions, -1)[:, :count]
    return rows.reshape(out.shape), last.reshape(state.shape)


@instruction(
    writes("dst", dtypes=_INTEGERS),
    engines=("vector", "gpsimd"),
    cost=_random_work,
    rules=(engine_since("gpsimd", 3),),
    source="nki/api/nki/isa/__init__.py, rng",
    state="prng",
)
def rng(
    *, out: jax.ShapeDtypeStruct, state: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """32 random bits an element, of which dst keeps the lowest.

    Generators step together: those that have no element left to fill (a free size that is no
    multiple of four on VectorE) step, too.
    """
    return random_bits(state, out)


@instruction(
    writes("dst", dtypes=(*(d for d in FLOATS if d != "float8_e4m3fn"), *_INTEGERS)),
    reads("min", dtypes=("float32",), scalar=True),
    reads("max", dtypes=("float32",), scalar=True),
    engines=("vector",),
    cost=_random_work,
    rules=(_range, partition_scalars("dst", "min", "max")),
    source="nki/api/nki/isa/__init__.py, rand2; trainium3_arch.rst",
    since=4,
    state="prng",
)
def rand2(
    min: jax.Array | float,
    max: jax.Array | float,
    *,
    out: jax.ShapeDtypeStruct,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Uniform float32 numbers: `min + u * (max - min)`, u one of 2^24 equidistant in [0, 1).

    `min` and `max` are numbers, or tiles of one element a partition. Which floats, and whether max
    itself can come out, is not documented.
    """
    bits, state = random_bits(state, out)
    uniform = (bits >> 8).astype(jnp.float32).reshape(out.shape[0], -1) * jnp.float32(2**-24)
    low, high = (jnp.asarray(x, jnp.float32).reshape(-1, 1) for x in (min, max))
    return low + uniform * (high - low), state


@instruction(
    reads("src_seeds", "sbuf", dtypes=("uint32",)),
    engines=("gpsimd", "vector"),
    cost=streaming(of="src_seeds"),
    rules=(_state_size("src_seeds"), engine_since("vector", 4)),
    source="nki/api/nki/isa/__init__.py, rand_set_state",
    since=3,
    state="prng",
)
def rand_set_state(src_seeds: jax.Array, *, state: jax.Array | None = None) -> Any:
    """Each lane's generators start over from the words of its partition.

    No cost is published: one word a cycle.
    """
    return (), src_seeds.reshape(src_seeds.shape[0], -1)


@instruction(
    writes("dst", dtypes=("uint32",)),
    engines=("gpsimd", "vector"),
    cost=streaming(),
    rules=(_state_size("dst"), engine_since("vector", 4)),
    source="nki/api/nki/isa/__init__.py, rand_get_state",
    since=3,
    state="prng",
)
def rand_get_state(*, state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The words of each lane's generators, as `rand_set_state` takes them.

    No cost is published: one word a cycle.
    """
    if state is None:
        raise ValueError(_UNSEEDED)
    return state, state


@instruction(
    reads("src_seeds", dtypes=("uint32", "int32", "float32")),
    engines=("vector",),
    cost=streaming(of="src_seeds"),
    rules=(_one_seed,),
    source="nki/api/nki/isa/__init__.py, set_rng_seed",
    state="prng",
)
def set_rng_seed(src_seeds: jax.Array, *, state: jax.Array | None = None) -> Any:
    """Every lane of VectorE starts over from one seed; the same seed, the same numbers.

    How 32 bits become 24 words in 128 lanes is not documented: here by MurmurHash3's finalizer of
    the seed and the word's number. No cost is published: that of one element.
    """
    seed = src_seeds.reshape(())
    if seed.dtype != jnp.uint32:
        seed = lax.bitcast_convert_type(seed, jnp.uint32)
    words = GENERATORS["vector"] * WORDS
    number = jnp.arange(MAX_PARTITIONS * words, dtype=jnp.uint32).reshape(MAX_PARTITIONS, words)
    return (), _mixed(_mixed(number + jnp.uint32(1)) ^ seed)


def _mixed(h: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer: a bijection in which every bit depends on every other."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
