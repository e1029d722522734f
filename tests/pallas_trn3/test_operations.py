"""Every line of the ISA table as an operation of a kernel: the value that `isa.execute` defines."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from jax_trn3 import isa
from pallas_trn3.operations import LEFT_OUT, OPERATIONS

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from isa_samples import sample

ALONE = sorted(set(OPERATIONS) - {"nop"})
_PLACES = {"sbuf": pltrn.SBUF, "psum": pltrn.PSUM, "hbm": pltrn.HBM}


def _shape(access: isa.Access) -> tuple[int, ...]:
    packed = access.tile.element.packed
    return (*access.shape, packed) if packed > 1 else access.shape


def _numbers(access: isa.Access, rng: np.random.Generator) -> jax.Array:
    """Values that any operation can take: small, positive where they may be indices."""
    dtype = access.tile.element.numpy
    if np.issubdtype(dtype, np.integer):
        return jnp.asarray(rng.integers(0, 4, _shape(access)), dtype)
    if dtype == np.bool_:
        return jnp.asarray(rng.integers(0, 2, _shape(access)), dtype)
    values = rng.standard_normal(_shape(access)).astype(np.float32)
    if access.dtype == "float8_e8m0fnu":
        values = np.exp2(np.round(values))
    return jnp.asarray(values).astype(dtype)


@pytest.mark.parametrize("name", ALONE)
def test_operation(name: str) -> None:
    instruction = sample(name, 64)
    rng = np.random.default_rng(len(name))
    roles = {o.name: o.role for o in instruction.spec.operands}
    accesses = dict(instruction.operands)
    arrays = {k: _numbers(a, rng) for k, a in accesses.items()}
    writes = [k for k in accesses if roles[k] != "read"]
    state = None
    if instruction.spec.state:
        kind = pltrn.engine_state(instruction.engine, instruction.spec.state)
        ones = np.ones(kind.shape, np.int32) if kind.dtype == jnp.uint32 else np.zeros(kind.shape)
        state = jnp.asarray(ones, kind.dtype)

    under = next((o.name for o in instruction.spec.operands if o.role == "accumulate"), None)

    @jax.jit  # as one program: an instruction's own arithmetic may be fused
    def alone(arrays: dict[str, jax.Array], state: jax.Array | None) -> dict[str, jax.Array]:
        reads = {k: v for k, v in arrays.items() if roles[k] == "read"}
        if state is not None:
            reads[isa.state_name(instruction)] = state
        return isa.execute(instruction, reads, arrays.get(under))

    expected = alone(arrays, state)

    def kernel(*refs: object) -> None:
        given = dict(zip(arrays, refs))
        results = dict(zip(writes, refs[len(arrays) + (state is not None) :]))
        tiles = dict(zip(accesses, refs[-len(accesses) - (state is not None) :]))
        for key, tile in tiles.items():  # to where it is needed, and to memory with something in it
            if accesses[key].memory == "hbm":
                pltrn.dma_copy(tile, given[key])
            else:
                tile[...] = given[key][...]
        extra = {}
        if state is not None:
            refs[-1][...] = refs[len(arrays)][...]
            extra["state"] = refs[-1]
        OPERATIONS[name](**tiles, **dict(instruction.params), engine=instruction.engine, **extra)
        for key in writes:
            if accesses[key].memory == "hbm":
                pltrn.dma_copy(results[key], tiles[key])
            else:
                results[key][...] = tiles[key][...]

    scratch = [_PLACES[a.memory](_shape(a), a.tile.element.numpy) for a in accesses.values()]
    if state is not None:
        scratch.append(kind)
    found = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(arrays[k].shape, arrays[k].dtype) for k in writes],
        scratch_shapes=scratch,
    )(*arrays.values(), *([] if state is None else [state]))
    for key, value in zip(writes, found):
        left, right = np.asarray(value), np.asarray(expected[key])
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), key


def test_the_whole_table_is_there() -> None:
    for name in isa.TABLE:
        assert name in LEFT_OUT or callable(getattr(pltrn, name))


def test_unknown_operation() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nc_matmull'"):
        _ = pltrn.nc_matmull
    with pytest.raises(AttributeError, match="registers are the kernel's own scalars"):
        _ = pltrn.register_load


def test_what_is_not_used_is_refused() -> None:
    def kernel(x_ref: object, o_ref: object, state: object) -> None:
        pltrn.tensor_copy(o_ref, x_ref, state=state)

    scratch = [pltrn.engine_state("vector", "accumulators")]
    x = jnp.ones((128, 8))
    with pytest.raises(TypeError, match=r"tensor_copy neither uses .* no state="):
        pl.pallas_call(kernel, out_shape=x, scratch_shapes=scratch)(x)
    with pytest.raises(ValueError, match="dimension_semantics has 'paralel'"):
        pltrn.CompilerParams(dimension_semantics=("paralel",))


@pytest.mark.parametrize("scoped", [False, True])
def test_a_sum_begins_with_nothing_in_new_psum(scoped: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (128, 64)), jnp.float32)

    def kernel(x_ref: object, o_ref: object, *acc: object) -> None:
        def twice(acc: object) -> None:
            for _ in range(2):
                pltrn.nc_matmul(acc, x_ref, x_ref)  # accumulate=None: onto what is there
            o_ref[...] = acc[...]

        tile = pltrn.PSUM((64, 64), jnp.float32)
        pl.run_scoped(twice, tile) if scoped else twice(*acc)

    scratch = [] if scoped else [pltrn.PSUM((64, 64), jnp.float32)]
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    found = pl.pallas_call(kernel, out_shape=shape, scratch_shapes=scratch)(x)
    np.testing.assert_array_equal(found, 2 * x.T @ x)


def test_semaphores_count_and_are_taken() -> None:
    def kernel(x_ref: object, o_ref: object, count_ref: object, ready: object) -> None:
        pltrn.tensor_copy(o_ref, x_ref, signal=[(ready, 5)])
        pltrn.tensor_scalar(o_ref, o_ref, 2.0, op0="multiply", wait=[(ready, 3)])
        count_ref[...] = jnp.full((1, 1), pl.semaphore_read(ready), jnp.int32)

    x = jnp.ones((128, 8))
    shapes = [x, jax.ShapeDtypeStruct((1, 1), jnp.int32)]
    semaphore = pltpu.SemaphoreType.REGULAR
    doubled, left = pl.pallas_call(kernel, out_shape=shapes, scratch_shapes=[semaphore])(x)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert int(left[0, 0]) == 2
