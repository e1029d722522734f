"""The program of a device as plain data: shapes, attributes, constants, sources."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from jax_trn3.compiler import Program
from jax_trn3.compiler.timing.collectives import along_axis, axes_of_groups
from jax_trn3.compiler.timing.graph import DeviceProgram, Mesh, Operation
from jax_trn3.compiler.timing.read import device_program

AUTO = (AxisType.Auto,) * 2
MESH = AbstractMesh((4, 2), ("data", "tensor"), axis_types=AUTO)


def on(*spec: Any) -> NamedSharding:
    return NamedSharding(MESH, P(*spec))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def module_of(function: Any, *arguments: Any, **options: Any) -> Any:
    lowered = jax.jit(function, **options).trace(*arguments).lower(lowering_platforms=("trn3",))
    return lowered.compiler_ir("stablehlo")


def program_of(function: Any, *arguments: Any, **options: Any) -> DeviceProgram:
    return device_program(module_of(function, *arguments, **options))


def only(program: DeviceProgram, kind: str) -> Operation:
    (operation,) = (op for op in program.body.walk() if op.kind == kind)
    return operation


# Shapes.


def test_shapes_are_those_of_shards() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=AUTO)
    specs = [P("data"), P(None, "tensor"), P("tensor", "data"), P(("tensor", "data")), P()]
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    arrays = [jax.device_put(np.ones((16, 24), np.float32), sharding) for sharding in shardings]

    def f(*xs: Any) -> Any:
        return [x * 2 for x in xs]

    program = program_of(f, *arrays, out_shardings=list(shardings[::-1]))
    outputs = jax.jit(f, out_shardings=list(shardings[::-1]))(*arrays)
    for tensor, array in zip(program.body.parameters, arrays, strict=True):
        assert tensor.shape == array.addressable_shards[0].data.shape
    for tensor, array in zip(program.body.results, outputs, strict=True):
        assert tensor.shape == array.addressable_shards[0].data.shape
    assert program.mesh == Mesh((("data", 4), ("tensor", 2)))


def test_size_that_does_not_divide_is_padded() -> None:
    def f(x: Any) -> Any:
        return jnp.sin(jax.lax.with_sharding_constraint(x[:10], on("data")))

    program = program_of(f, floats(16, 3))
    assert only(program, "stablehlo.sine").results[0].shape == (3, 3)  # 10 rows: 3, 3, 3, 1


def test_values_are_different_and_defined() -> None:
    program = program_of(
        lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i, x), floats(4)
    )
    defined = [tensor.id for op in program.body.walk() for tensor in op.results]
    for op in program.body.walk():
        defined += [tensor.id for region in op.regions for tensor in region.parameters]
    defined += [tensor.id for tensor in program.body.parameters]
    assert len(defined) == len(set(defined))
    assert {t.id for op in program.body.walk() for t in op.operands} <= set(defined)


def test_one_device_has_no_mesh() -> None:
    program = program_of(lambda x: x @ x, floats(4, 4))
    assert program.mesh == Mesh()
    assert program.name == "jit__lambda"
    assert [op.kind for op in program.body.operations] == ["stablehlo.dot_general"]


def test_shard_map_has_local_shapes() -> None:
    f = jax.shard_map(
        lambda x: jax.lax.psum(jnp.sin(x), "tensor"),
        mesh=MESH, in_specs=P("data", "tensor"), out_specs=P("data"),
    )  # fmt: skip
    program = program_of(f, floats(64, 128))
    assert only(program, "stablehlo.sine").results[0].shape == (16, 64)
    reduce = only(program, "stablehlo.all_reduce")
    assert (reduce.attributes["axes"], reduce.attributes["sizes"]) == (("tensor",), (2,))
    assert program.body.results == reduce.results


def test_mesh_of_a_topology() -> None:
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("trn3-gen2", platform="trn3").devices
    mesh = jax.sharding.Mesh(np.array(devices).reshape(144, -1), ("data", "tensor"))
    sharding = NamedSharding(mesh, P("data"))
    program = program_of(lambda x: x + 1, floats(1152, 8), in_shardings=sharding)
    assert program.mesh.axes == (("data", 144), ("tensor", len(devices) // 144))
    assert program.body.parameters[0].shape == (8, 8)


def test_devices_in_another_order() -> None:
    text = """
    sdy.mesh @mesh = <["x"=2, "y"=2], device_ids=[3, 2, 1, 0]>
    func.func public @main(
        %x: tensor<8x4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"y", "x"}, {}]>}
    ) -> tensor<8x4xf32> { return %x : tensor<8x4xf32> }"""
    with mlir.make_ir_context() as context:
        program = device_program(ir.Module.parse(text, context))
    assert program.mesh == Mesh((("x", 2), ("y", 2)), (3, 2, 1, 0))
    assert program.body.parameters[0].shape == (2, 4)


def test_dynamic_shapes_are_refused() -> None:
    (size,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(lambda x: x * 2), platforms=["cpu"])(floats(size))
    context = mlir.make_ir_context()
    module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
    with pytest.raises(ValueError, match=r"dynamic shape tensor<\?xf32>.*concrete"):
        device_program(module)


def test_modules_of_other_contexts() -> None:
    module = module_of(jnp.sin, floats(8, 4), in_shardings=on("data"))
    parsed = Program.parse(mlir.module_to_bytecode(module), "mlir").module()
    for program in (device_program(module), device_program(parsed)):
        assert program.body.parameters[0].shape == (2, 4)
    with mlir.make_ir_context():
        device_program(module)


# Attributes, constants, regions.


def test_dimension_numbers_are_mappings() -> None:
    program = program_of(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y), floats(2, 3, 4), floats(2, 4, 5)
    )
    assert only(program, "stablehlo.dot_general").attributes == {
        "dot_dimension_numbers": {
            "lhs_batching_dimensions": (0,),
            "rhs_batching_dimensions": (0,),
            "lhs_contracting_dimensions": (2,),
            "rhs_contracting_dimensions": (1,),
        },
        "precision_config": ("DEFAULT", "DEFAULT"),
    }


def test_convolution_attributes() -> None:
    program = program_of(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (0, 2))),
        floats(2, 3, 8, 8), floats(4, 3, 3, 3),
    )  # fmt: skip
    attributes = only(program, "stablehlo.convolution").attributes
    assert attributes["padding"] == ((1, 1), (0, 2))
    assert attributes["window_strides"] == (2, 2)
    assert attributes["dimension_numbers"]["kernel_spatial_dimensions"] == (2, 3)


def test_sizes_among_attributes_are_local() -> None:
    def f(x: Any, rows: Any, at: Any) -> Any:
        return x[rows], jax.lax.dynamic_slice(x, (at, 0), (2, 64)), x[3:5]

    program = program_of(
        f, floats(32, 64), jax.ShapeDtypeStruct((4,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32),
        in_shardings=(on(None, "data"), on(), on()), out_shardings=on(None, "data"),
    )  # fmt: skip
    assert only(program, "stablehlo.gather").attributes["slice_sizes"] == (1, 16)
    assert only(program, "stablehlo.dynamic_slice").attributes["slice_sizes"] == (2, 16)
    cut = only(program, "stablehlo.slice").attributes
    assert (cut["start_indices"], cut["limit_indices"]) == ((3, 0), (5, 16))


def test_constants() -> None:
    small, large = np.arange(16, dtype=np.float32), np.arange(100, dtype=np.float32)
    program = program_of(lambda x, y: (x + small, y + large, x * 3), floats(16), floats(100))
    kept = sorted(program.constants.items())
    assert [value.tolist() for _, value in kept if value.shape] == [small.tolist()]
    made = [op for op in program.body.operations if op.kind == "stablehlo.constant"]
    assert [op.attributes.get("splat") for op in made if not op.results[0].shape] == [3.0]
    assert {op.results[0].id for op in made if op.results[0].size <= 64} == set(program.constants)


@pytest.mark.parametrize(
    "constant",
    [
        np.array([1j, 2, 3, 4], np.complex64),
        np.ones(4, jnp.float8_e4m3fn),
        np.arange(4).astype(jnp.float8_e4m3fn),
        np.arange(4).astype(jnp.int4),
        np.array([True, False, True, True]),
        np.zeros((0, 4), np.float32),
    ],
    ids=lambda constant: f"{constant.dtype}{list(constant.shape)}",
)
def test_constants_of_any_type(constant: Any) -> None:
    program = program_of(lambda: jnp.array(constant))
    assert program.body.results[0].shape == constant.shape


def test_regions() -> None:
    def f(which: Any, x: Any) -> Any:
        x = jax.lax.switch(which, [jnp.sin, jnp.cos, jnp.tanh], x)
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, jnp.sort(x))

    program = program_of(f, jax.ShapeDtypeStruct((), jnp.int32), floats(8))
    branches = only(program, "stablehlo.case").regions
    assert [region.operations[0].kind for region in branches] == [
        "stablehlo.sine", "stablehlo.cosine", "stablehlo.tanh",
    ]  # fmt: skip
    condition, body = only(program, "stablehlo.while").regions
    assert [tensor.dtype for tensor in condition.results] == ["i1"]
    assert len(body.parameters) == len(body.results) == 1
    (comparator,) = only(program, "stablehlo.sort").regions
    assert [tensor.shape for tensor in comparator.parameters] == [(), ()]


def test_loops_have_local_shapes_inside() -> None:
    def f(x: Any) -> Any:
        return jax.lax.scan(lambda h, y: (h + y, jnp.sin(h)), jnp.zeros((8, 16)), x)

    program = program_of(f, floats(5, 8, 16), in_shardings=on(None, "data", "tensor"))
    (loop,) = (op for op in program.body.operations if op.kind == "stablehlo.while")
    for region in loop.regions:
        assert [t.shape for t in region.parameters] == [t.shape for t in loop.operands]
    assert only(program, "stablehlo.sine").results[0].shape == (2, 8)


def test_donated() -> None:
    program = program_of(lambda x, y: (x + 1, y), floats(8), floats(8), donate_argnums=0)
    assert program.donated == (0,)
    program = program_of(
        lambda x, y: (x * 2, y + 1), floats(8, 8), floats(8, 8), donate_argnums=1,
        in_shardings=on("data"),
    )  # fmt: skip
    assert program.donated == (1,)


def test_tokens_have_no_bytes() -> None:
    def f(x: Any) -> Any:
        jax.debug.print("{}", x[0], ordered=True)
        return x * 2

    program = program_of(f, floats(8))
    (token,) = (t for t in program.body.results if t.dtype == "token")
    assert (token.shape, token.bytes) == ((), 0)
    assert any(op.kind.startswith("custom_call:") for op in program.body.operations)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="compute_on has another signature")
def test_what_is_computed_on_the_host_says_so() -> None:
    from jax.experimental.compute_on import compute_on

    def f(x: Any) -> Any:
        with compute_on("device_host"):
            y = jnp.sin(x)
        return jnp.cos(y)

    program = program_of(f, floats(8))
    hint = {"mhlo.frontend_attributes": {"_xla_compute_type": "host"}}
    assert only(program, "stablehlo.sine").attributes == hint
    assert only(program, "stablehlo.cosine").attributes == {}


# Sources.


def layer(x: Any) -> Any:
    return jnp.tanh(x)


def test_source_is_the_line_that_was_written() -> None:
    @jax.jit
    def inner(x: Any) -> Any:
        return layer(x)

    def model(x: Any) -> Any:
        with jax.named_scope("block"):
            y = inner(x)
        return jnp.where(y > 0, y, x)

    program = program_of(jax.grad(lambda x: model(x).sum()), floats(8))
    source = only(program, "stablehlo.tanh").source
    _, line = inspect.getsourcelines(layer)
    assert (source.file, source.line, source.function) == (__file__, line + 1, "layer")
    assert source.name.startswith("jit(")
    assert "block" in source.name
    assert source.name.endswith("jit(inner)/tanh")
    # A library's function has no line of its own: the call's.
    select = next(op for op in program.body.operations if op.kind == "stablehlo.select").source
    _, line = inspect.getsourcelines(model)
    assert (select.file, select.line) == (__file__, line + 3)


def test_source_of_ours_is_the_callers() -> None:
    import jax_trn3

    def f(a: Any, b: Any) -> Any:
        return jax_trn3.mx_dot_general(a, b, (((1,), (0,)), ((), ())))

    source = only(program_of(f, floats(32, 64), floats(64, 32)), "trn3.mx_dot_general").source
    assert (source.file, source.line) == (__file__, inspect.getsourcelines(f)[1] + 1)


# Groups of devices.

GRID = Mesh((("a", 2), ("b", 3), ("c", 4)))
RANKS = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        (RANKS.transpose(0, 1, 2).reshape(6, 4), ("c",)),
        (RANKS.transpose(1, 2, 0).reshape(12, 2), ("a",)),
        (RANKS.transpose(1, 0, 2).reshape(3, 8), ("a", "c")),
        (RANKS.transpose(1, 2, 0).reshape(3, 8), ("c", "a")),
        (RANKS.reshape(1, 24), ("a", "b", "c")),
        (RANKS.reshape(6, 4)[::-1], ("c",)),
        (RANKS.reshape(24, 1), ()),
        (RANKS.reshape(12, 2), None),
        (np.array([[0, 5], [1, 2]]), None),
    ],
)
def test_axes_of_groups(groups: Any, axes: tuple[str, ...] | None) -> None:
    assert axes_of_groups(groups, GRID) == axes


def test_permutation_along_an_axis() -> None:
    pairs = np.stack([RANKS.ravel(), np.roll(RANKS, -1, axis=1).ravel()], axis=1)
    found = along_axis(pairs, GRID)
    assert found == {"axes": ("b",), "sizes": (3,), "dims": (), "pairs": ((0, 1), (1, 2), (2, 0))}
    assert along_axis(pairs[:-1], GRID) is None
    assert along_axis(np.array([[0, 23]]), GRID) is None
