"""Collectives in kernels: values as JAX's collectives have them, time, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

import pallas_trn3 as pltrn
from jax_trn3 import isa
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.timing import program_of, simulated
from pallas_trn3.timing.find import _kernels

DEVICES = 4


def _over(function, x):
    """On four devices, each with its rows of x."""
    mesh = Mesh(np.array(jax.devices("trn3")[:DEVICES]), ("d",))
    spec = PartitionSpec("d")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return mapped, jax.jit(mapped)(x)


def _kernel(collective, shape, dtype, memory):
    """A kernel of one collective."""
    block = pl.BlockSpec(memory_space=memory)

    def body(x, y):
        collective(y, x, "d")

    return pl.pallas_call(
        body,
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        compiler_params=pltrn.CompilerParams(),
    )


def _ring():
    return [(k, (k + 1) % DEVICES) for k in range(DEVICES)]


CASES = {
    "all_reduce": (pltrn.all_reduce, lambda x: lax.psum(x, "d"), (8, 32)),
    "all_reduce max": (
        functools.partial(pltrn.all_reduce, op="max"), lambda x: lax.pmax(x, "d"), (8, 32),
    ),
    "all_gather": (pltrn.all_gather, lambda x: lax.all_gather(x, "d", tiled=True), (32, 32)),
    "all_gather columns": (
        functools.partial(pltrn.all_gather, axis=1),
        lambda x: lax.all_gather(x, "d", axis=1, tiled=True),
        (8, 128),
    ),
    "reduce_scatter": (
        pltrn.reduce_scatter, lambda x: lax.psum_scatter(x, "d", tiled=True), (2, 32),
    ),
    "reduce_scatter min": (
        functools.partial(pltrn.reduce_scatter, op="min", axis=1),
        lambda x: lax.dynamic_slice_in_dim(lax.pmin(x, "d"), 8 * lax.axis_index("d"), 8, 1),
        (8, 8),
    ),
    "all_to_all": (
        pltrn.all_to_all, lambda x: lax.all_to_all(x, "d", 0, 0, tiled=True), (8, 32),
    ),
    "collective_permute": (
        functools.partial(pltrn.collective_permute, pairs=_ring()),
        lambda x: lax.ppermute(x, "d", _ring()),
        (8, 32),
    ),
}  # fmt: skip
IN_HBM_ONLY = ("all_to_all", "collective_permute")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory", [pltrn.HBM, pltrn.SBUF], ids=str)
def test_values_are_those_of_jax(name, memory):
    collective, wanted, shape = CASES[name]
    if memory == pltrn.SBUF and name in IN_HBM_ONLY:
        pytest.skip("in HBM only")
    x = jax.random.normal(jax.random.key(0), (DEVICES * 8, 32))
    _, result = _over(_kernel(collective, shape, x.dtype, memory), x)
    _, expected = _over(wanted, x)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_cores_of_a_pair_exchange_tiles():
    x = jnp.arange(DEVICES * 8 * 16.0).reshape(DEVICES * 8, 16)
    _, result = _over(_kernel(pltrn.sendrecv, (8, 16), x.dtype, pltrn.SBUF), x)
    blocks = np.asarray(x).reshape(DEVICES, 8, 16)
    np.testing.assert_array_equal(result, blocks[[1, 0, 3, 2]].reshape(x.shape))


def test_in_a_loop_beside_instructions():
    def body(x, y, tile):
        y[...] = jnp.zeros_like(y)

        @pl.loop(0, 3)
        def _(i):
            pltrn.all_reduce(tile, x.at[i], "d")
            pltrn.tensor_tensor(y, y, tile, op="add")

    def kernel(x):
        return pl.pallas_call(
            body,
            out_shape=jax.ShapeDtypeStruct((8, 16), jnp.float32),
            scratch_shapes=[pltrn.SBUF((8, 16), jnp.float32)],
            compiler_params=pltrn.CompilerParams(),
        )(x.reshape(3, 8, 16))

    x = jax.random.normal(jax.random.key(0), (DEVICES * 24, 16))
    _, result = _over(kernel, x)
    wanted = np.asarray(x, np.float64).reshape(DEVICES, 3, 8, 16).sum((0, 1))
    np.testing.assert_allclose(result, np.tile(wanted, (DEVICES, 1)), rtol=1e-5, atol=1e-5)


def _timeline(collective, shape, memory, chip):
    x = jax.random.normal(jax.random.key(0), (DEVICES * 128, 4096))
    kernel = _kernel(collective, shape, x.dtype, memory)
    mapped, _ = _over(kernel, x)
    (found,) = _kernels(jax.make_jaxpr(mapped)(x).jaxpr)
    timed = program_of(found, chip)
    return timed, simulated(timed, chip)


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3], ids=["trn2", "trn3"])
def test_time_is_that_of_the_links(chip):
    shape = (128, 4096)
    timed, in_hbm = _timeline(pltrn.all_reduce, shape, pltrn.HBM, chip)
    _, in_sbuf = _timeline(pltrn.all_reduce, shape, pltrn.SBUF, chip)
    assert any("neighbouring devices" in sentence for sentence in timed.assumptions)
    names = {instruction.name for instruction in in_hbm.instructions}
    assert names == {"collective"}
    assert in_hbm.active_ps > 5_000_000  # a few steps of microseconds each
    # Blocks in SBUF are loaded and stored around it.
    assert in_sbuf.hbm_read_bytes >= 128 * 4096 * 4
    assert in_hbm.hbm_read_bytes > in_sbuf.hbm_read_bytes


def test_time_of_an_exchange():
    _, timeline = _timeline(pltrn.sendrecv, (128, 4096), pltrn.SBUF, TRAINIUM3)
    assert "sendrecv" in {instruction.name for instruction in timeline.instructions}


@pytest.mark.parametrize(
    ("collective", "shape", "memory", "problem"),
    [
        (pltrn.all_reduce, (8, 16), pltrn.HBM, r"dst has shape \(8, 16\).*must be \(8, 32\)"),
        (pltrn.all_gather, (8, 32), pltrn.HBM, r"must be \(32, 32\)"),
        (pltrn.all_to_all, (8, 32), pltrn.SBUF, "all_to_all works in hbm"),
        (pltrn.sendrecv, (8, 32), pltrn.HBM, "sendrecv works in sbuf"),
        (functools.partial(pltrn.all_reduce, op="mean"), (8, 32), pltrn.HBM, "op is 'mean'"),
        (functools.partial(pltrn.all_reduce, priority=4), (8, 32), pltrn.HBM, "priority is 4"),
        (
            functools.partial(pltrn.collective_permute, pairs=[(0, 1), (2, 1)]),
            (8, 32), pltrn.HBM, "target twice",
        ),
        (
            functools.partial(pltrn.collective_permute, pairs=[(0, 4)]),
            (8, 32), pltrn.HBM, "outside of 0 to 3",
        ),
        (functools.partial(pltrn.reduce_scatter, axis=2), (8, 32), pltrn.HBM, "axis is 2 of 2"),
    ],
)  # fmt: skip
def test_what_is_refused(collective, shape, memory, problem):
    x = jnp.ones((DEVICES * 8, 32))
    with pytest.raises(isa.IllegalInstruction, match=problem) as error:
        _over(_kernel(collective, shape, x.dtype, memory), x)
    assert "test_kernel_collectives.py:" in str(error.value)


def test_memories_and_dtypes_do_not_mix():
    def body(x, y):
        pltrn.all_reduce(y, x, "d")

    kernel = pl.pallas_call(
        body,
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)],
        out_specs=pl.BlockSpec(memory_space=pltrn.SBUF),
        out_shape=jax.ShapeDtypeStruct((8, 32), jnp.bfloat16),
    )
    with pytest.raises(isa.IllegalInstruction, match="both must lie in hbm.*same dtype"):
        _over(kernel, jnp.ones((DEVICES * 8, 32)))


def test_an_axis_that_is_not_bound():
    with pytest.raises(NameError, match="d"):
        _kernel(pltrn.all_reduce, (8, 32), jnp.float32, pltrn.HBM)(jnp.ones((8, 32)))
