"""estimate() of programs by their shapes: what it says, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jax_trn3
from jax_trn3.hardware import get_topology

BF16 = jnp.bfloat16


def shape(*dims: int, dtype=BF16, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def mesh(*sizes: int, names=("data", "tensor")) -> AbstractMesh:
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


def mlp(x, w, v):
    return jax.nn.softmax(jnp.tanh(x @ w) @ v)


MLP = (shape(1024, 2048), shape(2048, 4096), shape(4096, 2048))


@pytest.fixture(scope="module")
def estimate() -> jax_trn3.Estimate:
    return jax_trn3.estimate(mlp, *MLP)


def test_figures_agree_with_each_other(estimate: jax_trn3.Estimate) -> None:
    flops = 2 * 1024 * 2048 * 4096 * 2
    assert estimate.flops >= flops
    assert estimate.cost.hardware_flops >= flops
    assert 0.5 < estimate.mfu <= estimate.hfu <= 1
    assert 0 < estimate.mbu < 1
    assert all(0 <= share <= 1 for share in estimate.engines.values())
    assert estimate.time_s >= max(estimate.bounds.values())
    assert estimate.slack >= 1
    assert estimate.bound == "tensor"
    peak = get_topology("trn3-chip").chip.core.peak_flops("bfloat16")
    assert estimate.time_s >= flops / peak
    parameters = sum(x.size * 2 for x in MLP)
    assert estimate.peak_hbm_bytes >= parameters
    assert estimate.fits


def test_times_by_operation_add_up(estimate: jax_trn3.Estimate) -> None:
    assert sum(line.time_ps for line in estimate.lines) == estimate.schedule.time_ps
    assert sum(line.time_ps for line in estimate.by_operation()) == estimate.schedule.time_ps
    assert all(line.source.file.endswith("test_estimate.py") for line in estimate.lines)
    lines = {line.source.line for line in estimate.lines}
    assert lines == {mlp.__code__.co_firstlineno + 1}


def test_energy_and_tokens(estimate: jax_trn3.Estimate) -> None:
    assert estimate.num_chips == 1
    power = get_topology("trn3-chip").chip.power_w
    assert estimate.energy_j == pytest.approx(power * estimate.time_s)
    assert estimate.tokens_per_s(1024) == pytest.approx(1024 / estimate.time_s)
    assert estimate.tokens_per_s_per_mw(1024) == pytest.approx(1024 / estimate.time_s / power * 1e6)


def test_it_prints(estimate: jax_trn3.Estimate) -> None:
    text = str(estimate)
    assert "trn3-chip" in text
    assert "MFU" in text
    assert "test_estimate.py" in text


def sharded(sizes: tuple[int, int]):
    over = mesh(*sizes)
    w = shape(2048, 4096, sharding=NamedSharding(over, PartitionSpec(None, "tensor")))
    v = shape(4096, 2048, sharding=NamedSharding(over, PartitionSpec("tensor", None)))
    x = shape(8192, 2048, sharding=NamedSharding(over, PartitionSpec("data", None)))
    return jax_trn3.estimate(mlp, x, w, v, topology="trn3-sled")


def test_a_mesh_shares_the_work_and_communicates() -> None:
    alone = jax_trn3.estimate(mlp, shape(8192, 2048), *MLP[1:])
    over = sharded((4, 8))
    assert over.num_devices == 32
    assert over.mesh.axes == (("data", 4), ("tensor", 8))
    assert over.time_s < alone.time_s / 8
    collectives = over.by_collective()
    assert collectives
    assert all(line.cost.link_bytes for line in collectives)
    assert over.cost.engines["links"] > 0
    assert not alone.by_collective()


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x = shape(512, 512)
    few, many = (jax_trn3.estimate(layers, x, shape(n, 512, 512)) for n in (10, 1000))
    assert many.schedule.time_ps == pytest.approx(100 * few.schedule.time_ps, rel=0.02)
    assert many.cost.flops == 100 * few.cost.flops
    lines = {line.name: line.count for line in many.by_operation()}
    assert 1000 in lines.values()


def test_faster_chips_take_less_time() -> None:
    times = [
        jax_trn3.estimate(mlp, *MLP, topology=name).time_s for name in ("trn2-chip", "trn3-chip")
    ]
    assert times[1] < times[0]
    fused = jax_trn3.estimate(mlp, *MLP, topology="trn3-chip", lnc=2)
    assert times[1] / 2 <= fused.time_s < times[1]


def test_what_does_not_fit_is_a_result() -> None:
    large = jax_trn3.estimate(lambda x: x @ x, shape(131072, 131072), topology="trn3-core")
    assert not large.fits
    assert large.peak_hbm_bytes > large.hbm_capacity_bytes
    assert large.residency.largest[0].shape == (131072, 131072)


def test_data_dependent_loops_ask() -> None:
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) < 100, lambda x: x @ x, x)

    x = shape(512, 512)
    with pytest.raises(ValueError, match=r"test_estimate.py:\d+ runs as often as data decide"):
        jax_trn3.estimate(until, x)
    two, four = (jax_trn3.estimate(until, x, while_trip_count=n) for n in (2, 4))
    assert four.schedule.time_ps > two.schedule.time_ps


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown topology 'trn9'"):
        jax_trn3.estimate(mlp, *MLP, topology="trn9")
    with pytest.raises(
        ValueError, match=r"mesh of 64 devices \(data=8 x tensor=8\).*trn3-sled has 32"
    ):
        sharded((8, 8))
    with pytest.raises(ValueError, match="static_argnums belongs to the jax.jit"):
        jax_trn3.estimate(jax.jit(mlp), *MLP, static_argnums=1)
    with pytest.raises(TypeError, match="contracting"):
        jax_trn3.estimate(lambda x, y: x @ y, shape(4, 5), shape(4, 5))
    with pytest.raises(TypeError, match="kwargs..colour"):
        jax_trn3.estimate(lambda x: x, shape(4), colour="red")
    uneven = NamedSharding(mesh(4, 8), PartitionSpec("data"))
    with pytest.raises(ValueError, match="evenly divide"):
        jax_trn3.estimate(jnp.sin, shape(6, sharding=uneven), topology="trn3-sled")
