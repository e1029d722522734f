"""Collectives against XLA's own partitioner, composites, and how cost grows with the mesh."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from partitioned_programs import PROGRAMS, traffic_of, traffic_of_hlo

import jax_trn3
from jax_trn3.compiler.timing.graph import Body, DeviceProgram, Operation, Tensor
from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.rewrites import in_cheapest_form

AUTO = (AxisType.Auto,) * 2
MESH = AbstractMesh((4, 2), ("data", "tensor"), axis_types=AUTO)
PRODUCT = (((1,), (0,)), ((), ()))


def on(*spec: Any) -> NamedSharding:
    return NamedSharding(MESH, P(*spec))


def bf16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def program_of(function: Any, *arguments: Any, **options: Any) -> DeviceProgram:
    lowered = jax.jit(function, **options).trace(*arguments).lower(lowering_platforms=("trn3",))
    return device_program(lowered.compiler_ir("stablehlo"))


def whole(program: DeviceProgram) -> list[Operation]:
    """Operations kept whole, and collectives."""
    return [op for op in program.body.operations if op.kind.startswith(("trn3.", "sdy."))]


def shapes(tensors: Any) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in tensors]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_collectives_are_those_of_xla(program: Callable[[], Any]) -> None:
    function, *arguments = program()
    lowered = function.lower(*arguments)
    ours = traffic_of(device_program(lowered.compiler_ir("stablehlo")))
    assert ours == traffic_of_hlo(lowered.compile().as_text())


def test_gather_over_two_axes_is_one() -> None:
    # XLA gathers 3 columns from 2 devices and then rows from 4: the same data in two steps.
    program = program_of(
        lambda x, w: x @ w,
        bf16(4096, 128),
        bf16(128, 6),
        in_shardings=(on("data"), on(None, "tensor")),
        out_shardings=on(),
    )
    (gather,) = whole(program)
    assert gather.attributes["axes"] == ("data", "tensor")
    assert gather.attributes["dims"] == (0, 1)
    assert shapes(gather.operands) == [(1024, 3)]


def test_all_reduce_that_is_sliced_is_a_reduce_scatter() -> None:
    program = program_of(
        lambda x, w: x @ w,
        bf16(64, 128),
        bf16(128, 32),
        in_shardings=(on(None, "data"), on("data")),
        out_shardings=on("data"),
    )
    (scatter,) = whole(program)
    assert scatter.kind == "sdy.reduce_scatter"
    assert dict(scatter.attributes) == {"axes": ("data",), "sizes": (4,), "dims": (0,)}
    assert shapes(scatter.results) == [(16, 32)]


def test_all_reduce_over_more_axes_than_the_slice() -> None:
    program = program_of(
        lambda x, w: x @ w,
        bf16(64, 128),
        bf16(128, 32),
        in_shardings=(on(None, ("data", "tensor")), on(("data", "tensor"))),
        out_shardings=on("tensor"),
    )
    scatter, reduce = whole(program)
    assert (scatter.kind, scatter.attributes["axes"]) == ("sdy.reduce_scatter", ("tensor",))
    assert (reduce.kind, reduce.attributes["axes"]) == ("sdy.all_reduce", ("data",))
    assert shapes(reduce.operands) == shapes(reduce.results) == [(32, 32)]
    assert program.body.results == reduce.results


def test_gathered_twice_is_gathered_once() -> None:
    program = program_of(
        lambda x, w: (x @ w, jnp.tanh(x) @ w),
        bf16(4096, 64),
        bf16(64, 64),
        in_shardings=(on("data"), on("data")),
    )
    assert [op.kind for op in whole(program)] == ["sdy.all_gather"]


def test_numbers_made_in_place_are_not_sent() -> None:
    number, parts, gathered = (
        Tensor(1, (), "f32"),
        Tensor(2, (4, 8), "f32"),
        Tensor(3, (16, 8), "f32"),
    )
    iota, turned = Tensor(4, (4, 8), "i32"), Tensor(5, (16, 2), "i32")
    body = Body(
        parameters=(number,),
        operations=(
            Operation("stablehlo.broadcast_in_dim", (number,), (parts,)),
            Operation("stablehlo.iota", (), (iota,), {"iota_dimension": 1}),
            Operation("sdy.all_gather", (parts,), (gathered,)),
            Operation("sdy.all_to_all", (iota,), (turned,)),
        ),
        results=(gathered, turned),
    )
    *_, first, second = in_cheapest_form(body, itertools.count(6)).operations
    assert (first.kind, first.operands, first.results) == (
        "stablehlo.broadcast_in_dim", (number,), (gathered,),
    )  # fmt: skip
    assert (second.kind, second.results) == ("stablehlo.iota", (turned,))


# Operations kept whole.


def test_attention_splits_batch_and_heads() -> None:
    along = on("data", None, "tensor")
    keys = bf16(8, 128, 2, 64)
    program = program_of(
        lambda q, k, v: jax_trn3.dot_product_attention(q, k, v, is_causal=True),
        bf16(8, 128, 8, 64), keys, keys, in_shardings=(along,) * 3,
    )  # fmt: skip
    (attention,) = whole(program)
    assert attention.kind == "trn3.dot_product_attention"
    assert shapes(attention.operands) == [(2, 128, 4, 64), (2, 128, 1, 64), (2, 128, 1, 64)]
    assert attention.attributes["is_causal"] is True
    assert attention.attributes["global_shapes"][0] == (8, 128, 8, 64)
    (decomposition,) = attention.regions
    assert shapes(decomposition.parameters) == shapes(attention.operands)
    assert shapes(decomposition.results) == shapes(attention.results)
    assert any(op.kind == "stablehlo.dot_general" for op in decomposition.walk())


def test_attention_of_queries_in_parts_has_all_keys() -> None:
    along = on(None, "data", "tensor")
    program = program_of(
        lambda q, k, v: jax_trn3.dot_product_attention(q, k, v),
        *((bf16(8, 128, 4, 64),) * 3), in_shardings=(along,) * 3,
    )  # fmt: skip
    *gathers, attention = whole(program)
    assert [op.attributes["axes"] for op in gathers] == [("data",)] * 2
    assert shapes(attention.operands) == [(8, 32, 2, 64), (8, 128, 2, 64), (8, 128, 2, 64)]


def test_attention_backward_splits_batch_and_heads() -> None:
    along = on("data", None, "tensor")

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jax_trn3.dot_product_attention(q, k, v).astype(jnp.float32).sum()

    keys = bf16(8, 128, 2, 64)
    program = program_of(
        jax.grad(loss, argnums=(0, 1, 2)),
        bf16(8, 128, 8, 64),
        keys,
        keys,
        in_shardings=(along,) * 3,
    )
    _, backward = whole(program)
    assert backward.kind == "trn3.dot_product_attention_backward"
    assert shapes(backward.results) == [(2, 128, 4, 64), (2, 128, 1, 64), (2, 128, 1, 64)]


def test_keys_of_shared_heads_add_up_their_gradients() -> None:
    def loss(q: Any, k: Any, v: Any) -> Any:
        return jax_trn3.dot_product_attention(q, k, v).astype(jnp.float32).sum()

    # Eight heads on eight devices, two of keys: four devices share each.
    keys = bf16(8, 128, 2, 64)
    along = on(None, None, "tensor")
    program = program_of(
        jax.grad(loss, argnums=(0, 1, 2)), bf16(8, 128, 8, 64), keys, keys,
        in_shardings=(on(None, None, ("tensor", "data")), along, along), out_shardings=(None, along, along),
    )  # fmt: skip
    _, backward, *sums = whole(program)
    assert shapes(backward.results) == [(8, 128, 1, 64)] * 3
    assert [op.kind for op in sums] == ["sdy.all_reduce"] * 2
    assert {op.attributes["axes"] for op in sums} == {("data",)}


def test_keys_of_queries_in_parts_add_up_their_gradients() -> None:
    def loss(q: Any, k: Any, v: Any) -> Any:
        return jax_trn3.dot_product_attention(q, k, v).astype(jnp.float32).sum()

    along = on(None, "data", "tensor")
    program = program_of(
        jax.grad(loss, argnums=(0, 1, 2)), *((bf16(8, 128, 4, 64),) * 3),
        in_shardings=(along,) * 3, out_shardings=(along,) * 3,
    )  # fmt: skip
    *_, backward, first, second = whole(program)
    assert shapes(backward.operands)[:2] == [(8, 32, 2, 64), (8, 128, 2, 64)]
    for scatter in (first, second):
        assert scatter.kind == "sdy.reduce_scatter"
        assert (scatter.attributes["axes"], scatter.attributes["dims"]) == (("data",), (1,))
        assert shapes(scatter.results) == [(8, 32, 2, 64)]


def test_mx_product_adds_up_what_is_contracted_in_parts() -> None:
    program = program_of(
        lambda a, b: jax_trn3.mx_dot_general(a, b, PRODUCT),
        bf16(64, 256), bf16(256, 128), in_shardings=(on("data", "tensor"), on("tensor")),
    )  # fmt: skip
    product, reduce = whole(program)
    assert product.kind == "trn3.mx_dot_general"
    assert shapes(product.operands) == [(16, 128), (128, 128)]
    assert (reduce.kind, reduce.attributes["axes"]) == ("sdy.all_reduce", ("tensor",))


def test_mx_blocks_are_not_cut() -> None:
    program = program_of(  # 96 is three blocks of 32: two devices cannot have them in equal parts
        lambda a, b: jax_trn3.mx_dot_general(a, b, PRODUCT),
        bf16(64, 96), bf16(96, 128), in_shardings=(on("data", "tensor"), on("tensor")),
    )  # fmt: skip
    *gathers, product = whole(program)
    assert [op.kind for op in gathers] == ["sdy.all_gather"] * 2
    assert shapes(product.operands) == [(16, 96), (96, 128)]


def test_mx_arrays_split_with_their_scales() -> None:
    def f(a: Any, b: Any) -> Any:
        quantized = jax_trn3.quantize_mx(a, 1), jax_trn3.quantize_mx(b, 0)
        return jax_trn3.mx_dot_general(*quantized, PRODUCT)

    program = program_of(
        f, bf16(64, 256), bf16(256, 128), in_shardings=(on("data", "tensor"), on("tensor"))
    )
    *_, product, _ = whole(program)
    assert shapes(product.operands) == [(16, 128), (128, 128), (16, 4), (4, 128)]


def test_sparse_product_splits_blocks() -> None:
    program = program_of(
        lambda a, b: jax_trn3.sparse_dot_general(a, b, PRODUCT, pattern="2:4"),
        bf16(64, 256), bf16(256, 128), in_shardings=(on("data", "tensor"), on("tensor")),
    )  # fmt: skip
    product = next(op for op in whole(program) if op.kind == "trn3.sparse_dot_general")
    assert shapes(product.operands) == [(16, 128), (64, 128), (64, 128)]


def test_convolution_splits_batch_and_features() -> None:
    def f(x: Any, w: Any) -> Any:
        dims = "NHWC", "HWIO", "NHWC"
        with jax_trn3.matmul_precision("mxfp8"):
            return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)

    program = program_of(
        f, bf16(8, 16, 16, 64), bf16(3, 3, 64, 32), in_shardings=(on("data"), on(None, None, None, "tensor"))
    )  # fmt: skip
    (convolution,) = whole(program)
    assert convolution.kind == "trn3.mx_conv_general_dilated"
    assert shapes(convolution.results) == [(2, 16, 16, 16)]


def test_decompositions_have_the_shapes_of_their_operations() -> None:
    def loss(x: Any, w: Any, q: Any) -> Any:
        y = jax_trn3.mx_dot_general(x, w, PRODUCT)
        z = y + jax_trn3.dequantize_mx(jax_trn3.quantize_mx(jax.lax.stop_gradient(y), 0))
        a = jax_trn3.dot_product_attention(q, q, q, is_causal=True)
        return z.astype(jnp.float32).sum() + a.astype(jnp.float32).sum()

    program = program_of(
        jax.grad(loss, argnums=(0, 1, 2)), bf16(256, 128), bf16(128, 64), bf16(8, 128, 4, 64),
        in_shardings=(on("data"), on(None, "tensor"), on("data", None, "tensor")),
    )  # fmt: skip
    ours = [op for op in program.body.operations if op.kind.startswith("trn3.")]
    assert len({op.kind for op in ours}) >= 3
    for op in ours:
        (decomposition,) = op.regions
        assert shapes(decomposition.parameters) == shapes(op.operands)
        assert shapes(decomposition.results) == shapes(op.results)


def test_random_numbers_are_made_in_parts() -> None:
    def f(key: Any) -> Any:
        values = jax.random.normal(jax.random.wrap_key_data(key, impl="rbg"), (64, 128))
        return jax.lax.with_sharding_constraint(values, on("data"))

    program = program_of(f, jax.ShapeDtypeStruct((4,), jnp.uint32))
    assert shapes(program.body.results) == [(16, 128)]


def test_composite_of_the_user_is_what_it_does() -> None:
    whole_sine = jax.lax.composite(lambda x: jnp.sin(x), "my.sine")
    program = program_of(lambda x: whole_sine(x), bf16(8))
    assert [op.kind for op in program.body.operations] == ["stablehlo.sine"]


def test_unknown_operation_has_whole_operands() -> None:
    program = program_of(
        lambda x: jax.lax.top_k(x, 2), bf16(64, 128), in_shardings=on("data", "tensor")
    )
    gather, top = program.body.operations[0], program.body.operations[-1]
    assert gather.kind == "sdy.all_gather"
    assert "top" in top.kind or top.operands[0].shape[0] == 64


# What leaves the caller's module alone, and what is refused.


def test_module_stays_as_it_is() -> None:
    function, *arguments = PROGRAMS[6]()
    module = function.lower(*arguments).compiler_ir("stablehlo")
    before = str(module)
    device_program(module)
    assert str(module) == before


@pytest.fixture
def gspmd() -> Iterator[None]:
    jax.config.update("jax_use_shardy_partitioner", False)
    yield
    jax.config.update("jax_use_shardy_partitioner", True)


@pytest.mark.usefixtures("gspmd")
def test_gspmd_annotations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"GSPMD's annotations.*jax_use_shardy_partitioner"):
        program_of(lambda x: x @ x.T, bf16(64, 32), in_shardings=on("data"))


def test_several_meshes_are_refused() -> None:
    other = NamedSharding(AbstractMesh((2, 4), ("a", "b"), axis_types=AUTO), P("a"))
    with pytest.raises(ValueError, match="several meshes"):
        program_of(lambda x, y: x @ y, bf16(64, 64), bf16(64, 64), in_shardings=(on("data"), other))


# Cost by size of the mesh.


def _scan_of_80_layers(devices: int) -> Any:
    mesh = AbstractMesh((devices // 16, 16), ("data", "tensor"), axis_types=AUTO)
    along = [NamedSharding(mesh, P(*spec)) for spec in ((None, None, "tensor"), (None, "tensor"))]

    def loss(w: Any, x: Any) -> Any:
        def layer(h: Any, wi: Any) -> Any:
            return h + jnp.tanh(h @ wi[0]) @ wi[1], None

        return jnp.mean(jax.lax.scan(jax.checkpoint(layer), x, w)[0] ** 2)

    f = jax.jit(jax.grad(loss), in_shardings=(along, NamedSharding(mesh, P("data"))))
    weights = [bf16(80, 8192, 28672), bf16(80, 28672, 8192)]
    lowered = f.trace(weights, bf16(devices, 8192)).lower(lowering_platforms=("trn3",))
    return lowered.compiler_ir("stablehlo")


@pytest.mark.parametrize("devices", [1152, 8_000_000])
def test_cost_does_not_grow_with_the_mesh(devices: int) -> None:
    module = _scan_of_80_layers(devices)
    start = time.process_time()
    program = device_program(module)
    assert time.process_time() - start < 0.5
    assert program.mesh.size == devices
    assert list(program.trip_counts.values()) == [80, 80]
    assert shapes(program.body.parameters)[2] == (16, 8192)


def test_lists_of_devices_become_axes() -> None:
    mesh = AbstractMesh((1000, 4, 2), ("r", "d", "t"), axis_types=(AxisType.Auto,) * 3)
    f = jax.shard_map(
        lambda x: jax.lax.psum(x, ("r", "t")),
        mesh=mesh,
        in_specs=P(("r", "d", "t")),
        out_specs=P("d"),
    )
    program = program_of(f, bf16(8000))
    (reduce,) = (op for op in program.body.operations if op.kind == "stablehlo.all_reduce")
    assert reduce.attributes["axes"] == ("r", "t")
    assert reduce.attributes["sizes"] == (1000, 2)
    assert "groups" not in reduce.attributes
