"""VectorE: the eight largest values of a partition, where they are, and what takes their place.

One after the other they give the next eight: `max8`, `nc_match_replace8` with -inf, `max8`, ...
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

from .cost import streaming
from .rules import same_size
from .spec import instruction, reads, writes
from .vector import constant, rows
from .vector_move import converted
from .vector_rules import dimensions_within, elements_within

_NISA = "nki/api/nki/isa/__init__.py"
_INDICES = ("uint16", "uint32")

MOST = 16_384
"""Elements of a partition that an instruction searches at most."""


@instruction(
    writes("dst"),
    reads("src"),
    engines=("vector",),
    cost=streaming(of="src"),
    rules=(
        elements_within("src", 8, MOST),
        elements_within("dst", 8, 8, like="src"),
        dimensions_within(3, "src"),
    ),
    source=f"{_NISA}, max8",
)
def max8(src: jax.Array) -> jax.Array:
    """The 8 largest of each partition's elements as float32, the largest first."""
    return lax.top_k(rows(src).astype(jnp.float32), 8)[0]


@instruction(
    writes("dst", dtypes=_INDICES),
    reads("data"),
    reads("vals"),
    engines=("vector",),
    cost=streaming(of="data"),
    rules=(
        elements_within("data", 8, MOST),
        elements_within("vals", 8, 8, like="data"),
        elements_within("dst", 8, 8, like="data"),
        dimensions_within(3, "data", "vals"),
    ),
    source=f"{_NISA}, nc_find_index8",
)
def nc_find_index8(data: jax.Array, vals: jax.Array, *, out: jax.ShapeDtypeStruct) -> jax.Array:
    """Where in its partition each of 8 values is first; all ones where it is not.

    Of equal values the first gets the first place, the second the second (`nc_match_replace8`'s
    documentation says so). Values are compared as float32.
    """
    places, _ = _matched(data, vals, range(8))
    return _indices(places, out)


@instruction(
    writes("dst"),
    reads("data"),
    reads("vals"),
    writes("dst_idx", dtypes=_INDICES, optional=True),
    engines=("vector",),
    # The documentation's min(MIN_II, N) would make long rows free; it must be max.
    cost=streaming(of="data"),
    rules=(
        elements_within("data", 1, MOST),
        elements_within("vals", 8, 8, like="data"),
        elements_within("dst_idx", 8, 8, like="data"),
        same_size("dst", "data"),
    ),
    source=f"{_NISA}, nc_match_replace8",
)
def nc_match_replace8(
    data: jax.Array,
    vals: jax.Array,
    *,
    imm: float,
    out: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None],
) -> tuple[jax.Array, jax.Array | None]:
    """`dst = data`, but `imm` where each of 8 values is first; `dst_idx` says where that is.

    Values are matched from the last to the first: of equal ones the last gets the first place. What
    `dst_idx` holds for a value that is not there is not documented: all ones here, as in
    `nc_find_index8`. A place that was replaced matches nothing more, whatever `imm` is.
    """
    places, replaced = _matched(data, vals, reversed(range(8)))
    values = converted(rows(data), out[0])
    values = jnp.where(replaced, constant(imm, values.dtype), values)
    return values, None if out[1] is None else _indices(places, out[1])


def _matched(data: jax.Array, vals: jax.Array, order: Iterable[int]) -> tuple[jax.Array, jax.Array]:
    """Places [P, 8] of the values, each used once, -1 if not there; which were used [P, F]."""
    x, wanted = rows(data).astype(jnp.float32), rows(vals).astype(jnp.float32)
    columns = jnp.arange(x.shape[1])[None, :]
    used = jnp.zeros(x.shape, jnp.bool_)
    places: dict[int, jax.Array] = {}
    for i in order:
        free = (x == wanted[:, i : i + 1]) & ~used
        places[i] = jnp.where(free.any(axis=1), jnp.argmax(free, axis=1), -1)
        used |= columns == places[i][:, None]
    return jnp.stack([places[i] for i in range(8)], axis=1), used


def _indices(places: jax.Array, out: jax.ShapeDtypeStruct) -> jax.Array:
    return places.astype(jnp.int32).astype(out.dtype)  # -1 becomes all ones
