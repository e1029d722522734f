"""MXArray as a pytree: mapped, traced, named, sharded, printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3 import numerics
from jax_trn3.numerics import MXArray

quantize = jax.jit(numerics.quantize, static_argnums=(1, 2))


def make(shape=(4, 8, 64), axis=-1, format="mxfp8_e4m3", seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    fmt = numerics.element_format(format)
    return MXArray(*quantize(x, axis, fmt), format=fmt, axis=axis)


def test_what_it_says_of_itself():
    mx = make()
    assert (mx.shape, mx.ndim, mx.size, mx.nbytes) == ((4, 8, 64), 3, 2048, 2048 + 64)
    assert mx.dtype == jnp.float8_e4m3fn
    assert repr(mx) == "MXArray(mxfp8_e4m3, shape=(4, 8, 64), axis=-1, block_size=32)"
    assert make(format="mxfp6_e3m2").dtype.name == "float6_e3m2fn"
    assert make(format="mxfp6_e3m2").data.dtype == jnp.uint8
    assert isinstance(make(format="mxfp4_e2m1").nbytes, int)


@pytest.mark.parametrize("format", [f.name for f in numerics.ELEMENT_FORMATS])
def test_dequantize(format):
    mx = make(format=format)
    fmt = numerics.element_format(format)
    wanted = jax.jit(numerics.dequantize, static_argnums=(2, 3))(mx.data, mx.scale, -1, fmt)
    np.testing.assert_array_equal(jax.jit(MXArray.dequantize)(mx), wanted)
    assert mx.dequantize(jnp.bfloat16).dtype == jnp.bfloat16


def test_leaves_may_be_anything():
    mx = make()
    assert jax.tree.structure(jax.tree.map(lambda _: None, mx)) != jax.tree.structure(mx)
    for leaf in (None, "sharding", object()):
        placeholder = jax.tree.map(lambda _, leaf=leaf: leaf, mx)
        assert placeholder.data is leaf
        assert "mxfp8_e4m3" in repr(placeholder)
    shapes = jax.eval_shape(lambda m: m, mx)
    assert isinstance(shapes.data, jax.ShapeDtypeStruct)
    assert (shapes.shape, shapes.ndim, shapes.size) == (mx.shape, mx.ndim, mx.size)
    assert "shape=(4, 8, 64)" in repr(shapes)


def test_key_paths_name_its_parts():
    leaves, _ = jax.tree_util.tree_flatten_with_path({"w": make()})
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == ["['w'].data", "['w'].scale"]


def test_jit_scan_and_vmap_take_leading_dimensions_away():
    mx = make()
    wanted = mx.dequantize()
    assert jax.jit(lambda m: m)(mx).axis == -1
    np.testing.assert_array_equal(jax.jit(MXArray.dequantize)(mx), wanted)
    np.testing.assert_array_equal(jax.vmap(MXArray.dequantize)(mx), wanted)
    _, scanned = jax.lax.scan(lambda c, m: (c, m.dequantize()), 0, mx)
    np.testing.assert_array_equal(scanned, wanted)
    seen = []
    jax.jit(lambda m: seen.append(repr(m)))(mx)
    assert seen == ["MXArray(mxfp8_e4m3, shape=(4, 8, 64), axis=-1, block_size=32)"]


def test_other_format_is_another_program():
    traced = []
    function = jax.jit(lambda m: (traced.append(m.format.name), m.dequantize())[1])
    for format in ("mxfp6_e3m2", "mxfp6_e2m3", "mxfp6_e3m2"):
        function(make(format=format))
    assert traced == ["mxfp6_e3m2", "mxfp6_e2m3"]


@pytest.mark.parametrize("permutation", [(0, 1, 2), (2, 0, 1), (1, -1, 0)])
def test_transpose(permutation):
    mx = make((3, 40, 33), -2)
    turned = mx.transpose(permutation)
    wanted = np.transpose(mx.dequantize(), permutation)
    assert turned.axis == {0: -2, 2: -1, 1: -3}[permutation[0]]
    np.testing.assert_array_equal(jax.jit(MXArray.dequantize)(turned), wanted)


def test_device_put_with_shardings_of_its_parts(run_python):
    done = run_python(
        """if True:
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jax_trn3 import numerics
        mesh = jax.make_mesh((8,), ("x",))
        x = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
        for format in (numerics.MXFP8_E4M3, numerics.MXFP4_E2M1):
            quantize = jax.jit(lambda x: numerics.quantize(x, -1, format))
            mx = numerics.MXArray(*quantize(x), format=format)
            for spec in (P("x"), P(None, "x")):
                shardings = jax.tree.map(lambda _: NamedSharding(mesh, spec), mx)
                placed = jax.device_put(mx, shardings)
                assert placed.scale.sharding.spec == spec
                same = jax.jit(numerics.MXArray.dequantize)(placed)
                assert (np.asarray(same) == np.asarray(mx.dequantize())).all(), format.name
                # Blocks that no shard cuts are quantized where they are.
                put = jax.device_put(x, NamedSharding(mesh, spec))
                data, scale = quantize(put)
                assert scale.sharding.is_equivalent_to(put.sharding, 2), (spec, scale.sharding)
        print("placed")
        """,
    )
    assert done.stdout == "placed\n", done.stderr
