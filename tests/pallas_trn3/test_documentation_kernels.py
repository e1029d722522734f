"""The kernels of JAX's Pallas documentation run on trn3 as they are, without `interpret=`.

Written after the pages named at each part (docs.jax.dev/en/latest/pallas/), in smaller sizes;
what they compute is compared with NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

RANDOM = np.random.default_rng(7)


def normal(*shape, dtype=np.float32):
    return RANDOM.standard_normal(shape).astype(dtype)


@pytest.fixture(autouse=True, scope="module", params=["0", "1"], ids=["", "checked"])
def on_trn3(request):
    """The kernels have to run on the platform, not beside it; the checks find nothing in them."""
    assert jax.default_backend() == "trn3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_TRN3_CHECK", request.param)
        jax.clear_caches()  # what is compiled stays as it was when it was compiled
        yield


# ---- quickstart ----


def test_quickstart_vectors():
    def add_vectors_kernel(x_ref, y_ref, o_ref):
        x, y = x_ref[...], y_ref[...]
        o_ref[...] = x + y

    @jax.jit
    def add_vectors(x, y):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(add_vectors_kernel, out_shape=out)(x, y)

    np.testing.assert_array_equal(add_vectors(jnp.arange(8), jnp.arange(8)), 2 * np.arange(8))


@pytest.mark.parametrize("length", [1, 8, 200])
def test_quickstart_iota(length):
    def iota_kernel(o_ref):
        i = pl.program_id(0)
        o_ref[i] = i

    out = jax.ShapeDtypeStruct((length,), jnp.int32)
    found = pl.pallas_call(iota_kernel, out_shape=out, grid=(length,))()
    np.testing.assert_array_equal(found, np.arange(length))
    smem = pl.BlockSpec(memory_space=pltpu.MemorySpace.SMEM)  # the page's version for TPUs
    found = pl.pallas_call(iota_kernel, out_specs=smem, out_shape=out, grid=(length,))()
    np.testing.assert_array_equal(found, np.arange(length))


def quickstart_matmul(x, y, activation=lambda z: z):
    def matmul_kernel(x_ref, y_ref, z_ref, *, activation):
        z_ref[...] = activation(x_ref[...] @ y_ref[...])

    return pl.pallas_call(
        functools.partial(matmul_kernel, activation=activation),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], y.shape[1]), x.dtype),
        grid=(2, 2),
        in_specs=[
            pl.BlockSpec((x.shape[0] // 2, x.shape[1]), lambda i, j: (i, 0)),
            pl.BlockSpec((y.shape[0], y.shape[1] // 2), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((x.shape[0] // 2, y.shape[1] // 2), lambda i, j: (i, j)),
    )(x, y)


def test_quickstart_matmul():
    x, y = normal(256, 192), normal(192, 320)
    expected = x.astype(np.float64) @ y
    np.testing.assert_allclose(quickstart_matmul(x, y), expected, rtol=1e-5, atol=1e-4)


def test_quickstart_fused_activation():
    x, y = normal(256, 192), normal(192, 320)
    expected = np.maximum(x.astype(np.float64) @ y, 0)
    found = quickstart_matmul(x, y, jax.nn.relu)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_quickstart_vmap():
    x, y = normal(4, 64, 32), normal(4, 32, 96)
    found = jax.vmap(functools.partial(quickstart_matmul, activation=jax.nn.relu))(x, y)
    expected = np.maximum(np.matmul(x.astype(np.float64), y), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


# ---- grid_blockspec ----


def program_ids(shape, block, grid, index_map=lambda i, j: (i, j)):
    """What each block's last program was: its indices as decimal digits."""

    def kernel(o_ref):
        digits = [pl.program_id(d) * 10 ** (len(grid) - 1 - d) for d in range(len(grid))]
        o_ref[...] = jnp.full(o_ref.shape, sum(digits))

    spec = pl.BlockSpec(block, index_map)
    out = jax.ShapeDtypeStruct(shape, np.int32)
    return pl.pallas_call(kernel, out_shape=out, grid=grid, in_specs=[], out_specs=spec)()


def by_block(shape, block, digits):
    rows, columns = (np.arange(n) // b for n, b in zip(shape, block))
    return digits(rows[:, None], columns[None, :])


@pytest.mark.parametrize(
    ("shape", "block", "grid"),
    [((8, 6), (2, 3), (4, 2)), ((7, 5), (2, 3), (4, 2)), ((1, 2), (2, 3), (1, 1))],
    ids=["whole", "edges", "smaller than a block"],
)
def test_blocks_are_where_the_index_map_says(shape, block, grid):
    found = program_ids(shape, block, grid)
    np.testing.assert_array_equal(found, by_block(shape, block, lambda i, j: 10 * i + j))


def test_the_last_of_several_programs_remains():
    found = program_ids((8, 6), (2, 3), (4, 2, 10), lambda i, j, k: (i, j))
    expected = by_block((8, 6), (2, 3), lambda i, j: 100 * i + 10 * j + 9)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", [None, (4, 4)])
def test_no_index_map_is_the_whole_array(block):
    np.testing.assert_array_equal(program_ids((4, 4), block, (2, 3), None), np.full((4, 4), 12))


def test_squeezed_dimension():
    def kernel(o_ref):
        assert o_ref.shape == (2,)
        o_ref[...] = jnp.full((2,), 10 * pl.program_id(1) + pl.program_id(0))

    found = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((3, 4), np.int32),
        out_specs=pl.BlockSpec((None, 2), lambda i, j: (i, j)),
        grid=(3, 2),
    )()
    np.testing.assert_array_equal(found, [[0, 0, 10, 10], [1, 1, 11, 11], [2, 2, 12, 12]])


def test_element_indices():
    block = (pl.Element(2), pl.Element(3))
    found = program_ids((8, 6), block, (4, 2), lambda i, j: (2 * i, 3 * j))
    np.testing.assert_array_equal(found, by_block((8, 6), (2, 3), lambda i, j: 10 * i + j))


def test_element_indices_with_padding():
    block = (pl.Element(2, (1, 0)), pl.Element(3, (2, 0)))
    found = program_ids((7, 7), block, (4, 3), lambda i, j: (2 * i, 3 * j))
    expected = by_block((8, 9), (2, 3), lambda i, j: 10 * i + j)[1:, 2:]
    np.testing.assert_array_equal(found, expected)


# ---- pipelining ----


def add_matrices_kernel(x_sram_ref, y_sram_ref, z_sram_ref):
    x_regs = x_sram_ref[:, :]
    y_regs = y_sram_ref[:, :]
    z_sram_ref[:, :] = x_regs + y_regs


def test_pipelining_whole_matrices():
    x, y = normal(512, 512), normal(512, 512)
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    np.testing.assert_array_equal(pl.pallas_call(add_matrices_kernel, out_shape=out)(x, y), x + y)


@pytest.mark.parametrize(("bm", "bn"), [(128, 256), (256, 256), (512, 128)])
def test_pipelining_blocks(bm, bn):
    x, y = normal(512, 512), normal(512, 512)
    spec = pl.BlockSpec((bm, bn), lambda i, j: (i, j))
    found = pl.pallas_call(
        add_matrices_kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[spec, spec],
        out_specs=spec,
        grid=(512 // bm, 512 // bn),
    )(x, y)
    np.testing.assert_array_equal(found, x + y)


def test_pipelining_sum():
    def correct_sum_kernel(x_ref, o_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    x = normal(8, 128, 256)
    found = pl.pallas_call(
        correct_sum_kernel,
        grid=(2, 2, 8),
        in_specs=[pl.BlockSpec((None, 64, 128), lambda i, j, k: (k, i, j))],
        out_specs=pl.BlockSpec((64, 128), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((128, 256), x.dtype),
    )(x)
    expected = np.zeros((128, 256), np.float32)
    for part in x:
        expected += part
    np.testing.assert_array_equal(found, expected)


# ---- tpu/quickstart, tpu/pipelining ----


def test_tpu_hbm_to_vmem():
    def kernel(x_hbm_ref, out_vmem_ref, scratch_vmem_ref):
        pltpu.sync_copy(x_hbm_ref.at[0:1], scratch_vmem_ref)
        out_vmem_ref[...] = scratch_vmem_ref[...] + 1

    x = normal(8, 128)
    found = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=jax.ShapeDtypeStruct((1, 128), x.dtype),
        scratch_shapes=(pltpu.VMEM(shape=(1, 128), dtype=x.dtype),),
    )(x)
    np.testing.assert_array_equal(found, x[0:1] + np.float32(1))


def test_tpu_fill_and_copy_out():
    def kernel(o_ref, o_vmem):
        o_vmem[...] = jnp.full_like(o_vmem, 42.0)
        pltpu.sync_copy(o_vmem, o_ref)

    found = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((128,), jnp.float32),
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        scratch_shapes=[pltpu.VMEM((128,), jnp.float32)],
    )()
    np.testing.assert_array_equal(found, np.full(128, 42, np.float32))


def test_tpu_async_copy_with_semaphore():
    def kernel(x_hbm, y_hbm, buffer, semaphore):
        down = pltpu.make_async_copy(x_hbm, buffer, semaphore)
        down.start()
        down.wait()
        buffer[...] = buffer[...] * 2
        up = pltpu.make_async_copy(buffer, y_hbm, semaphore)
        up.start()
        up.wait()

    x = normal(16, 128)
    found = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA],
    )(x)
    np.testing.assert_array_equal(found, x * 2)


def test_tpu_double_buffering_by_hand():
    """The pipelining page's loop: the next block is fetched while this one is worked on."""

    def kernel(x_hbm, o_hbm, x_buffer, o_buffer, x_sem, o_sem):
        def fetch(i, slot):
            return pltpu.make_async_copy(x_hbm.at[i], x_buffer.at[slot], x_sem.at[slot])

        def put(i, slot):
            return pltpu.make_async_copy(o_buffer.at[slot], o_hbm.at[i], o_sem.at[slot])

        steps = x_hbm.shape[0]
        fetch(0, 0).start()

        def body(i, _):
            slot, other = i % 2, (i + 1) % 2

            @pl.when(i + 1 < steps)
            def _():
                fetch(i + 1, other).start()

            fetch(i, slot).wait()
            o_buffer[slot] = x_buffer[slot] + 1
            put(i, slot).start()

            @pl.when(i > 0)
            def _():
                put(i - 1, other).wait()

            return 0

        lax.fori_loop(0, steps, body, 0)
        put(steps - 1, (steps - 1) % 2).wait()

    x = normal(5, 16, 128)
    found = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[
            pltpu.VMEM((2, 16, 128), x.dtype),
            pltpu.VMEM((2, 16, 128), x.dtype),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.SemaphoreType.DMA((2,)),
        ],
    )(x)
    np.testing.assert_array_equal(found, x + np.float32(1))


def test_tpu_buffer_count():
    x, y = normal(256, 256), normal(256, 256)
    spec = pl.BlockSpec((64, 128), lambda i, j: (i, j), pipeline_mode=pl.Buffered(buffer_count=3))
    plain = pl.BlockSpec((64, 128), lambda i, j: (i, j))
    found = pl.pallas_call(
        add_matrices_kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[spec, spec],
        out_specs=plain,
        grid=(4, 2),
    )(x, y)
    np.testing.assert_array_equal(found, x + y)


def test_tpu_emit_pipeline():
    def kernel(x_hbm, y_hbm, z_hbm):
        spec = pl.BlockSpec((64, 128), lambda i, j: (i, j))
        pipeline = pltpu.emit_pipeline(
            add_matrices_kernel, grid=(2, 2), in_specs=[spec, spec], out_specs=[spec]
        )
        pipeline(x_hbm, y_hbm, z_hbm)

    x, y = normal(128, 256), normal(128, 256)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    found = pl.pallas_call(
        kernel,
        in_specs=[anywhere, anywhere],
        out_specs=anywhere,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    )(x, y)
    np.testing.assert_array_equal(found, x + y)


def test_tpu_emit_pipeline_accumulates():
    def inner(x_ref, y_ref, z_ref, acc_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            acc_ref[...] = jnp.zeros_like(acc_ref)

        acc_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            z_ref[...] = acc_ref[...]

    def kernel(x_hbm, y_hbm, z_hbm, acc_ref):
        pltpu.emit_pipeline(
            functools.partial(inner, acc_ref=acc_ref),
            grid=(2, 1, 3),
            in_specs=[
                pl.BlockSpec((64, 128), lambda i, j, k: (i, k)),
                pl.BlockSpec((128, 128), lambda i, j, k: (k, j)),
            ],
            out_specs=[pl.BlockSpec((64, 128), lambda i, j, k: (i, j))],
        )(x_hbm, y_hbm, z_hbm)

    x, y = normal(128, 384), normal(384, 128)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    found = pl.pallas_call(
        kernel,
        in_specs=[anywhere, anywhere],
        out_specs=anywhere,
        out_shape=jax.ShapeDtypeStruct((128, 128), x.dtype),
        scratch_shapes=[pltpu.VMEM((64, 128), jnp.float32)],
    )(x, y)
    np.testing.assert_allclose(found, x.astype(np.float64) @ y, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("params", [None, pltpu.CompilerParams(dimension_semantics=("parallel",))])
def test_tpu_dimension_semantics(params):
    x, y = normal(512, 512), normal(512, 512)
    spec = pl.BlockSpec((256, 512), lambda i: (i, 0))
    found = pl.pallas_call(
        add_matrices_kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[spec, spec],
        out_specs=spec,
        grid=(2,),
        compiler_params=params,
    )(x, y)
    np.testing.assert_array_equal(found, x + y)


# ---- tpu/quickstart: pl.kernel, on a mesh of one core ----


def tensor_core_mesh():
    if hasattr(pltpu, "TensorCoreMesh"):  # JAX 0.12
        return pltpu.TensorCoreMesh(axis_name="core")
    return pltpu.create_tensorcore_mesh("core")


def test_tpu_first_kernel():
    @pl.kernel(
        out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
        mesh=tensor_core_mesh(),
        scratch_types={"o_vmem": pltpu.VMEM((128,), jnp.float32)},
    )
    def fill_42(o_ref, o_vmem):
        o_vmem[...] = jnp.full_like(o_vmem, 42.0)
        pltpu.sync_copy(o_vmem, o_ref)

    np.testing.assert_array_equal(fill_42(), np.full(128, 42, np.float32))


def test_tpu_core_index():
    cores = pltpu.get_tpu_info().num_cores

    @pl.kernel(
        out_type=jax.ShapeDtypeStruct((128 * cores,), jnp.float32),
        mesh=tensor_core_mesh(),
        scratch_types={"o_vmem": pltpu.VMEM((128,), jnp.float32)},
    )
    def kernel(o_ref, o_vmem):
        i = lax.axis_index("core")
        o_vmem[...] = jnp.arange(128, dtype=jnp.float32) + i * 128
        pltpu.sync_copy(o_vmem, o_ref.at[pl.ds(i * 128, 128)])

    np.testing.assert_array_equal(kernel(), np.arange(128 * cores))


def test_tpu_pipeline_over_cores():
    x, y = normal(256, 256), normal(256, 256)

    @pl.kernel(out_type=jax.ShapeDtypeStruct(x.shape, x.dtype), mesh=tensor_core_mesh())
    def kernel(x_hbm, y_hbm, o_hbm):
        def add_body(x_vmem, y_vmem, o_vmem):
            o_vmem[...] = x_vmem[...] + y_vmem[...]

        spec = pl.BlockSpec((128, 128), lambda i, j: (i, j))
        pltpu.emit_pipeline(
            add_body,
            grid=(2, 2),
            in_specs=[spec, spec],
            out_specs=spec,
            core_axis_name="core",
            dimension_semantics=(pltpu.PARALLEL, pltpu.ARBITRARY),
        )(x_hbm, y_hbm, o_hbm)

    np.testing.assert_array_equal(jax.jit(kernel)(x, y), x + y)


# ---- tpu/matmul ----


def documented_matmul(
    x, y, bias=None, *, bm=64, bk=64, bn=128, transpose_rhs=False, activation=lambda z: z, sums=None
):
    """The page's template: float32 sums in scratch, a transposed right side, an activation."""
    sums = sums or jnp.float32
    out = sums if sums == jnp.int32 else x.dtype

    def kernel(x_ref, y_ref, bias_ref, z_ref, acc_ref, *, nsteps):
        @pl.when(pl.program_id(2) == 0)
        def _():
            acc_ref[...] = jnp.zeros_like(acc_ref)

        dims = (((1,), (1 if transpose_rhs else 0,)), ((), ()))
        acc_ref[...] += lax.dot_general(
            x_ref[...], y_ref[...], dims, preferred_element_type=acc_ref.dtype
        )

        @pl.when(pl.program_id(2) == nsteps - 1)
        def _():
            z_ref[...] = activation(acc_ref[...] + bias_ref[...]).astype(z_ref.dtype)

    m, k = x.shape
    n = y.shape[0] if transpose_rhs else y.shape[1]
    bias = jnp.zeros((1, n), sums) if bias is None else bias
    across = pl.BlockSpec((bk, bn), lambda i, j, k: (k, j))
    if transpose_rhs:
        across = pl.BlockSpec((bn, bk), lambda i, j, k: (j, k))
    return pl.pallas_call(
        functools.partial(kernel, nsteps=k // bk),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            in_specs=[
                pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
                across,
                pl.BlockSpec((1, bn), lambda i, j, k: (0, j)),
            ],
            out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
            scratch_shapes=[pltpu.VMEM((bm, bn), sums)],
            grid=(m // bm, n // bn, k // bk),
        ),
        out_shape=jax.ShapeDtypeStruct((m, n), out),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )(x, y, bias)


def test_tpu_matmul_accumulates_in_its_output():
    def matmul_kernel(x_ref, y_ref, z_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            z_ref[...] = jnp.zeros_like(z_ref)

        z_ref[...] += x_ref[...] @ y_ref[...]

    x, y = normal(256, 384), normal(384, 256)
    found = pl.pallas_call(
        matmul_kernel,
        out_shape=jax.ShapeDtypeStruct((256, 256), x.dtype),
        in_specs=[
            pl.BlockSpec((128, 128), lambda i, j, k: (i, k)),
            pl.BlockSpec((128, 128), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((128, 128), lambda i, j, k: (i, j)),
        grid=(2, 2, 3),
    )(x, y)
    np.testing.assert_allclose(found, x.astype(np.float64) @ y, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("transpose_rhs", [False, True])
def test_tpu_matmul(dtype, transpose_rhs):
    x, y = normal(128, 192, dtype=dtype), normal(192, 256, dtype=dtype)
    found = documented_matmul(x, y.T if transpose_rhs else y, transpose_rhs=transpose_rhs)
    expected = x.astype(np.float64) @ y.astype(np.float64)
    assert found.dtype == dtype
    rtol = 1e-5 if dtype == np.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rtol, atol=1e-4)


def test_tpu_matmul_int8():
    x = RANDOM.integers(-128, 128, (128, 192), dtype=np.int8)
    y = RANDOM.integers(-128, 128, (192, 256), dtype=np.int8)
    found = documented_matmul(x, y, sums=jnp.int32)
    np.testing.assert_array_equal(found, x.astype(np.int32) @ y.astype(np.int32))


def test_tpu_matmul_bias_and_activation():
    x, y, bias = normal(128, 192), normal(192, 256), normal(1, 256)
    found = jax.jit(functools.partial(documented_matmul, activation=jax.nn.relu))(x, y, bias)
    expected = np.maximum(x.astype(np.float64) @ y + bias, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_tpu_matmul_derivative():
    """The page's exercise: a derivative by `custom_vjp`, of the kernel itself."""

    @jax.custom_vjp
    def matmul(x, y):
        return documented_matmul(x, y)

    def forward(x, y):
        return matmul(x, y), (x, y)

    def backward(saved, dz):
        x, y = saved
        dx = documented_matmul(dz, y, transpose_rhs=True)
        return dx, documented_matmul(x.T, dz)

    matmul.defvjp(forward, backward)
    x, y = normal(128, 128), normal(128, 128)
    dx, dy = jax.grad(lambda x, y: matmul(x, y).sum(), argnums=(0, 1))(x, y)
    ones = np.ones((128, 128))
    np.testing.assert_allclose(dx, ones @ y.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dy, x.T @ ones, rtol=1e-5, atol=1e-4)


# ---- tpu/sparse: scalar prefetch ----


@pytest.mark.parametrize("starts", [(0, 0), (64, 128), (192, 0)])
def test_prefetched_block_slice(starts):
    def dynamic_slice_kernel(indices, x_ref, o_ref):
        del indices
        o_ref[...] = x_ref[...]

    sizes = (64, 128)
    x = np.arange(256 * 256, dtype=np.int32).reshape(256, 256)
    found = pl.pallas_call(
        dynamic_slice_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(1, 1),
            in_specs=[pl.BlockSpec(sizes, lambda i, j, block: (block[0], block[1]))],
            out_specs=pl.BlockSpec(sizes, lambda *_: (0, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct(sizes, x.dtype),
    )(jnp.array([s // n for s, n in zip(starts, sizes)], jnp.int32), x)
    rows, columns = starts
    np.testing.assert_array_equal(found, x[rows : rows + 64, columns : columns + 128])


def test_sparse_times_dense():
    """Blocks of a sparse matrix by rows; output blocks without any come from an aliased operand."""
    block, rows, columns = 64, 4, 3
    indices_i, indices_k = np.array([0, 0, 1, 3], np.int32), np.array([0, 2, 1, 2], np.int32)
    count = len(indices_i)
    blocks, y = normal(count, block, block), normal(columns * block, 256)

    def dsd_kernel(i_ref, k_ref, x_ref, y_ref, _, o_ref, accum):
        del k_ref
        at = pl.program_id(1)
        changed = i_ref[at] != i_ref[jnp.maximum(at - 1, 0)]

        @pl.when((at == 0) | changed)
        def _():
            accum[...] = jnp.zeros_like(accum)

        accum[...] += jnp.dot(x_ref[0, :, :], y_ref[...], preferred_element_type=jnp.float32)
        changes = i_ref[at] != i_ref[jnp.minimum(at + 1, count - 1)]

        @pl.when((at == count - 1) | changes)
        def _():
            o_ref[...] = accum[...].astype(o_ref.dtype)

    found = pl.pallas_call(
        dsd_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(2, count),
            in_specs=[
                pl.BlockSpec((1, block, block), lambda j, at, i, k: (at, 0, 0)),
                pl.BlockSpec((block, 128), lambda j, at, i, k: (k[at], j)),
                pl.BlockSpec((block, 128), lambda j, at, i, k: (i[at], j)),
            ],
            out_specs=pl.BlockSpec((block, 128), lambda j, at, i, k: (i[at], j)),
            scratch_shapes=[pltpu.VMEM((block, 128), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((rows * block, 256), jnp.float32),
        input_output_aliases={4: 0},
    )(indices_i, indices_k, blocks, y, jnp.zeros((rows * block, 256), jnp.float32))

    dense = np.zeros((rows * block, columns * block))
    for i, k, part in zip(indices_i, indices_k, blocks):
        dense[i * block : (i + 1) * block, k * block : (k + 1) * block] = part
    np.testing.assert_allclose(found, dense @ y, rtol=1e-5, atol=1e-4)


def test_block_sparse_output_mask():
    size, block = 256, 64
    n = size // block
    mask = np.tril(np.ones((size, size), np.int32))
    block_mask = mask.reshape(n, block, n, block).any((1, 3)).astype(np.int32)
    # Where nothing is computed, what is next is fetched: here the block of the row's diagonal.
    fetched = np.minimum(np.arange(n)[None, :], np.arange(n)[:, None]).astype(np.int32)

    def kernel(block_mask_ref, fetched_ref, x_ref, y_ref, mask_ref, o_ref, accum):
        del fetched_ref
        i, j, k = pl.program_id(0), pl.program_id(1), pl.program_id(2)

        @pl.when(k == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)
            accum[...] = jnp.zeros_like(accum[...])

        @pl.when(block_mask_ref[i, j] != 0)
        def _():
            accum[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

            @pl.when(k == pl.num_programs(2) - 1)
            def _():
                o_ref[...] = (mask_ref[...] * accum[...]).astype(o_ref.dtype)

    x, y = normal(size, 128, dtype=ml_dtypes.bfloat16), normal(128, size, dtype=ml_dtypes.bfloat16)
    found = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(n, n, 2),
            in_specs=[
                pl.BlockSpec((block, 64), lambda i, j, k, on, _: (i, (on[i, j] != 0) * k)),
                pl.BlockSpec((64, block), lambda i, j, k, on, at: ((on[i, j] != 0) * k, at[i, j])),
                pl.BlockSpec((block, block), lambda i, j, k, on, at: (i, at[i, j])),
            ],
            out_specs=pl.BlockSpec((block, block), lambda i, j, k, *_: (i, j)),
            scratch_shapes=[pltpu.VMEM((block, block), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((size, size), jnp.bfloat16),
    )(block_mask, fetched, x, y, mask)
    expected = mask * (x.astype(np.float64) @ y.astype(np.float64))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-4)


# ---- design/async_note: an operation that begins in one place and ends in another ----


def test_async_operation_over_two_waits():
    def kernel(x_hbm, y_hbm, o_ref, x_vmem, y_vmem, semaphores):
        first = pltpu.make_async_copy(x_hbm, x_vmem, semaphores.at[0])
        second = pltpu.make_async_copy(y_hbm, y_vmem, semaphores.at[1])
        first.start()
        second.start()
        first.wait()
        o_ref[...] = x_vmem[...] + 1
        second.wait()
        o_ref[...] *= y_vmem[...]

    x, y = normal(64, 128), normal(64, 128)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    found = pl.pallas_call(
        kernel,
        in_specs=[anywhere, anywhere],
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[
            pltpu.VMEM(x.shape, x.dtype),
            pltpu.VMEM(x.shape, x.dtype),
            pltpu.SemaphoreType.DMA((2,)),
        ],
    )(x, y)
    np.testing.assert_array_equal(found, (x + np.float32(1)) * y)


def test_async_copy_between_parts_of_hbm():
    def kernel(x_hbm, o_hbm, semaphore):
        copies = [
            pltpu.make_async_copy(
                x_hbm.at[pl.ds(8 * i, 8)], o_hbm.at[pl.ds(8 * (3 - i), 8)], semaphore
            )
            for i in range(4)
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()

    x = normal(32, 128)
    found = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.SemaphoreType.DMA],
    )(x)
    np.testing.assert_array_equal(found, x.reshape(4, 8, 128)[::-1].reshape(32, 128))


def test_scoped_semaphore_and_buffer():
    def kernel(x_hbm, o_ref):
        def scoped(buffer, semaphore):
            copy = pltpu.make_async_copy(x_hbm, buffer, semaphore)
            copy.start()
            copy.wait()
            o_ref[...] = buffer[...] * 3

        pl.run_scoped(scoped, pltpu.VMEM((16, 64), jnp.float32), pltpu.SemaphoreType.DMA)

    x = normal(16, 64)
    found = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    )(x)
    np.testing.assert_array_equal(found, x * 3)


def test_regular_semaphores():
    def kernel(x_ref, o_ref, semaphore):
        pl.semaphore_signal(semaphore, 2)
        o_ref[...] = x_ref[...] + 1
        pl.semaphore_wait(semaphore, 2)

    x = normal(16, 64)
    found = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.SemaphoreType.REGULAR],
    )(x)
    np.testing.assert_array_equal(found, x + np.float32(1))
