"""Lowering rules: what JAX leaves to platforms that it knows, trn3 has too."""

from __future__ import annotations

import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RunPython
from jax import lax

X = np.linspace(0.1, 1.0, 10, dtype=np.float32)


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ({"cpu": jnp.sin, "tpu": jnp.cos}, np.sin),
        ({"cpu": jnp.sin, "trn3": jnp.cos}, np.cos),
        ({"cpu": jnp.sin, "default": jnp.tan}, np.tan),
        ({"trn3": jnp.sin, "default": jnp.tan}, np.sin),
        ({"tpu": jnp.sin, "default": jnp.tan}, np.tan),
    ],
    ids=[
        "cpu for want of others",
        "its own",
        "default before cpu",
        "own before default",
        "default",
    ],
)
def test_platform_dependent(branches: dict, expected: np.ufunc) -> None:
    result = jax.jit(lambda x: lax.platform_dependent(x, **branches))(X)
    np.testing.assert_allclose(result, expected(X), rtol=1e-6)


def test_platform_dependent_without_a_branch_that_could_serve() -> None:
    with pytest.raises(NotImplementedError, match="platform_index.*not found for platform trn3"):
        jax.jit(lambda x: lax.platform_dependent(x, tpu=jnp.sin, cuda=jnp.cos))(X)


def test_ffi_targets_of_the_platform(run_python: RunPython) -> None:
    """A target registered before the platform starts, and one after; LAPACK serves as the code."""
    code = textwrap.dedent("""
        import jax, jax.numpy as jnp, numpy as np
        from jaxlib.lapack import _lapack, registrations

        _lapack.initialize()

        handlers = dict((name, handler) for name, handler, *_ in registrations()["cpu"])
        def cholesky(name, x):
            call = jax.ffi.ffi_call(name, (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((), np.int32)))
            return jnp.tril(call(x, uplo=np.uint8(ord("L")))[0])

        jax.ffi.register_ffi_target("before", handlers["lapack_spotrf_ffi"], platform="trn3")
        a = np.eye(3, dtype=np.float32) * 4
        print(jax.jit(lambda x: cholesky("before", x))(a)[1, 1], jax.devices()[0].platform)
        jax.ffi.register_ffi_target("after", handlers["lapack_spotrf_ffi"], platform="trn3")
        print(jax.jit(lambda x: cholesky("after", x))(a)[2, 2])
        try:
            jax.jit(lambda x: cholesky("never", x))(a)
        except Exception as error:
            print(type(error).__name__, "never" in str(error))
    """)
    process = run_python(code)
    assert process.stdout.split() == ["2.0", "trn3", "2.0", "JaxRuntimeError", "True"], (
        process.stderr
    )


def test_profiler_trace_has_compilation_and_execution(tmp_path: Path) -> None:
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(jax.jit(lambda x: x @ x.T)(jnp.ones((64, 64))))
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    events = trace.read_bytes()
    # jaxlib's own names for what goes through a plugin's C API; the CPU backend has none of them.
    assert b"PjRtCApiClient::CompileAndLoad(jit__lambda)" in events
    assert b"PJRT_LoadedExecutable_Execute" in events


def test_pallas_kernels_run_without_interpret() -> None:
    from jax.experimental import pallas as pl

    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = x_ref[...] * 2 + y_ref[...] + pl.program_id(0)

    block = pl.BlockSpec((4, 8), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(3,),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((12, 8), np.float32),
    )
    x = np.arange(96, dtype=np.float32).reshape(12, 8)
    expected = x * 2 + x + np.repeat(np.arange(3), 4)[:, None]
    np.testing.assert_array_equal(jax.jit(call)(x, x), expected)
    np.testing.assert_array_equal(jax.vmap(call)(x[None], x[None])[0], expected)
