"""Programs over several devices: sharded, replicated, and with collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_cpu import F32, RANDOM, Function, array, auto, devices
from jax import lax


@pytest.mark.parametrize("size", [1, 2, 8])
def test_sharded_program_on_a_line_of_devices(size: int) -> None:
    mesh = jax.sharding.Mesh(devices(*range(size)), "d")
    x, w = array(8, 6), array(6, 16)
    put = lambda v, *spec: jax.device_put(v, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    y = jax.jit(lambda x, w: jnp.tanh(x @ w).sum(0))(put(x, "d"), put(w, None, "d"))
    assert len(y.sharding.device_set) == size
    np.testing.assert_allclose(np.asarray(y), np.tanh(x @ w).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8, 1)])
def test_sharded_program_on_a_grid_of_devices(shape: tuple[int, int]) -> None:
    mesh = auto(shape, ("a", "b"))
    x, w = array(8, 8), array(8, 8)
    sharded = jax.jit(
        jnp.matmul,
        in_shardings=(
            jax.NamedSharding(mesh, jax.P("a", "b")),
            jax.NamedSharding(mesh, jax.P("b")),
        ),
        out_shardings=jax.NamedSharding(mesh, jax.P("a", "b")),
    )
    y = sharded(x, w)
    assert y.addressable_shards[0].data.shape == (8 // shape[0], 8 // shape[1])
    np.testing.assert_allclose(np.asarray(y), x @ w, rtol=1e-5, atol=1e-5)


def test_sharding_constraint_inside_a_program() -> None:
    mesh = auto((4, 2), ("a", "b"))
    constraint = jax.NamedSharding(mesh, jax.P("b", "a"))
    x = array(8, 8)
    y = jax.jit(lambda x: lax.with_sharding_constraint(x * 2, constraint))(x)
    assert y.sharding.is_equivalent_to(constraint, 2)
    np.testing.assert_array_equal(np.asarray(y), x * 2)


def test_explicit_sharding_of_a_mesh_in_context() -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    x = array(8, 8)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: jnp.sin(x).T)(jax.device_put(x, jax.P("a", "b")))
    assert jax.typeof(y).sharding.spec == jax.P("b", "a")
    np.testing.assert_allclose(np.asarray(y), np.sin(x).T, rtol=1e-6)


def parts(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, 8)


# Each collective over 8 devices, and what numpy makes of the 8 parts of its argument (16, 8).
COLLECTIVES: dict[str, tuple[Function, Function]] = {
    "psum": (lambda x: lax.psum(x, "d"), lambda p: [sum(p)] * 8),
    "pmean": (lambda x: lax.pmean(x, "d"), lambda p: [sum(p) / 8] * 8),
    "pmax": (lambda x: lax.pmax(x, "d"), lambda p: [np.max(p, 0)] * 8),
    "pmin": (lambda x: lax.pmin(x, "d"), lambda p: [np.min(p, 0)] * 8),
    "all_gather": (lambda x: lax.all_gather(x, "d"), lambda p: [np.stack(p)] * 8),
    "all_gather, tiled": (
        lambda x: lax.all_gather(x, "d", axis=1, tiled=True),
        lambda p: [np.concatenate(p, 1)] * 8,
    ),
    "psum_scatter": (
        lambda x: lax.psum_scatter(x, "d", scatter_dimension=1, tiled=True),
        lambda p: np.split(sum(p), 8, axis=1),
    ),
    "ppermute": (
        lambda x: lax.ppermute(x, "d", [(i, (i + 3) % 8) for i in range(8)]),
        lambda p: [p[(i - 3) % 8] for i in range(8)],
    ),
    "ppermute, partial": (
        lambda x: lax.ppermute(x, "d", [(0, 5)]),
        lambda p: [p[0] if i == 5 else 0 * p[0] for i in range(8)],
    ),
    "all_to_all": (
        lambda x: lax.all_to_all(x, "d", split_axis=1, concat_axis=0, tiled=True),
        lambda p: [np.concatenate([np.split(q, 8, 1)[i] for q in p]) for i in range(8)],
    ),
    "axis_index": (
        lambda x: x + lax.axis_index("d"),
        lambda p: [q + i for i, q in enumerate(p)],
    ),
    "psum of groups": (
        lambda x: lax.psum(x, "d", axis_index_groups=[[0, 1, 2, 3], [4, 5, 6, 7]]),
        lambda p: [sum(p[:4])] * 4 + [sum(p[4:])] * 4,
    ),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collective_is_what_numpy_makes_of_the_parts(name: str) -> None:
    collective, expected = COLLECTIVES[name]
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    x = RANDOM.integers(-9, 9, (16, 8)).astype(F32)
    program = jax.jit(
        jax.shard_map(
            lambda x: collective(x)[None], mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
            check_vma=False,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(program(x)), np.stack(expected(parts(x))))


def test_collective_over_each_axis_of_a_grid() -> None:
    mesh = auto((2, 4), ("a", "b"))
    x = RANDOM.integers(-9, 9, (4, 8)).astype(F32)
    y = jax.jit(
        jax.shard_map(
            lambda x: (lax.psum(x, "a"), lax.psum(x, "b"), lax.psum(x, ("a", "b"))), mesh=mesh,
            in_specs=jax.P("a", "b"), out_specs=(jax.P(None, "b"), jax.P("a"), jax.P()),
        )
    )(x)  # fmt: skip
    blocks = x.reshape(2, 2, 4, 2)
    np.testing.assert_array_equal(np.asarray(y[0]), blocks.sum(0).reshape(2, 8))
    np.testing.assert_array_equal(np.asarray(y[1]), blocks.sum(2).reshape(4, 2))
    np.testing.assert_array_equal(np.asarray(y[2]), blocks.sum((0, 2)))


def test_shards_of_one_array_become_arguments_of_another_mesh() -> None:
    x = np.arange(16.0, dtype=F32)
    forward = jax.sharding.Mesh(devices(*range(8)), "d")
    backward = jax.sharding.Mesh(devices(*reversed(range(8))), "d")
    on_forward = jax.device_put(x, jax.NamedSharding(forward, jax.P("d")))
    pieces = {s.device: s.data for s in on_forward.addressable_shards}
    assembled = jax.make_array_from_single_device_arrays(
        (16,), jax.NamedSharding(backward, jax.P("d")), [pieces[d] for d in backward.devices]
    )
    y = jax.jit(lambda x: x * 2)(assembled)
    np.testing.assert_array_equal(np.asarray(y), x.reshape(8, 2)[::-1].ravel() * 2)
    np.testing.assert_array_equal(np.asarray(on_forward), x)  # untouched


def test_array_that_was_put_together_for_one_program_serves_others() -> None:
    x = array(16)
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    singles = [jax.device_put(part, d) for part, d in zip(parts(x), jax.devices(), strict=True)]
    whole = jax.make_array_from_single_device_arrays(
        (16,), jax.NamedSharding(mesh, jax.P("d")), singles
    )
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x + 1)(whole)), x + 1)
        for single, part in zip(singles, parts(x), strict=True):
            np.testing.assert_array_equal(np.asarray(single), part)
            np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x - 1)(single)), part - 1)


@pytest.mark.parametrize("ids", [(3,), (5, 1), (7, 0, 3, 2), (1, 3, 5, 7)], ids=str)
def test_program_runs_on_the_devices_of_its_arguments_in_their_order(ids: tuple[int, ...]) -> None:
    mesh = jax.sharding.Mesh(devices(*ids), "d")
    x = jax.device_put(np.arange(8), jax.NamedSharding(mesh, jax.P("d")))
    program = jax.shard_map(
        lambda x: x * 0 + lax.axis_index("d"), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")
    )
    y = jax.jit(program)(x)
    assert [s.device.id for s in sorted(y.addressable_shards, key=lambda s: s.index[0].start or 0)] == list(ids)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(y), np.repeat(np.arange(len(ids)), 8 // len(ids)))


def test_replicated_arrays_need_not_be_equal() -> None:
    mesh = jax.sharding.Mesh(devices(0, 1), "d")
    singles = [jax.device_put(np.full(2, i), d) for i, d in enumerate(mesh.devices)]
    x = jax.make_array_from_single_device_arrays((2,), jax.NamedSharding(mesh, jax.P()), singles)
    y = jax.jit(lambda x: x + 10)(x)
    np.testing.assert_array_equal([np.asarray(s.data) for s in y.addressable_shards], [[10] * 2, [11] * 2])  # fmt: skip
