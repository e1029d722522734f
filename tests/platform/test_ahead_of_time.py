"""Programs compiled before they run, read, exported and loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_cpu import F32, array, auto, on_cpu
from jax.experimental import serialize_executable


@pytest.fixture(scope="module")
def compiled() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((64, 64), F32)
    return jax.jit(lambda x, y: jnp.sin(x @ y)).lower(shape, shape).compile()


def test_program_compiled_ahead_of_time_runs(compiled: jax.stages.Compiled) -> None:
    x, y = array(64, 64), array(64, 64)
    expected = on_cpu(lambda x, y: jnp.sin(x @ y), x, y)
    np.testing.assert_array_equal(np.asarray(compiled(x, y)), expected)


def test_cost_analysis_counts_the_flops(compiled: jax.stages.Compiled) -> None:
    figures = compiled.cost_analysis()
    assert 2 * 64**3 <= figures["flops"] <= 2 * 64**3 + 64**2  # the product, and sines
    assert figures["bytes accessed"] >= 3 * 64**2 * 4
    assert 0 < figures["optimal_seconds"] < 1e-3


def test_memory_analysis_knows_arguments_and_outputs(compiled: jax.stages.Compiled) -> None:
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == 2 * 64 * 64 * 4
    assert memory.output_size_in_bytes == 64 * 64 * 4
    assert memory.alias_size_in_bytes == 0


def test_memory_analysis_knows_donated_bytes() -> None:
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((64,), F32))
    assert program.compile().memory_analysis().alias_size_in_bytes == 256


def test_optimized_program_can_be_read(compiled: jax.stages.Compiled) -> None:
    text = compiled.as_text()
    assert text.startswith("HloModule")
    assert "f32[64,64]" in text
    assert "dot" in text


def test_shardings_of_a_compiled_program() -> None:
    sharding = jax.NamedSharding(auto((8,), ("d",)), jax.P("d"))
    x = jax.ShapeDtypeStruct((16,), F32, sharding=sharding)
    program = jax.jit(lambda x: x + 1).lower(x).compile()
    (ins, _), outs = program.input_shardings, program.output_shardings
    assert ins[0].is_equivalent_to(sharding, 1)
    assert outs.is_equivalent_to(sharding, 1)
    assert "num_partitions=8" in program.as_text()


def test_exported_program_runs() -> None:
    x = array(5)
    exported = jax.export.export(jax.jit(jnp.cumsum))(x)
    assert exported.platforms == ("trn3",)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(np.asarray(again.call(x)), on_cpu(jnp.cumsum, x))


def test_executable_that_was_loaded_is_serialized_and_loaded_again() -> None:
    program = jax.jit(lambda x: jnp.sin(x) * x + 1).lower(jnp.arange(4.0)).compile()
    for _ in range(3):
        parts = serialize_executable.serialize(program)
        program = serialize_executable.deserialize_and_load(
            *parts, execution_devices=jax.devices()[:1]
        )
        x = np.arange(4, dtype=F32)
        np.testing.assert_allclose(np.asarray(program(x)), np.sin(x) * x + 1, rtol=1e-6)
