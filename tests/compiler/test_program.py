"""Programs as the framework hands them over: text, bytecode, donation, garbage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters import mlir

from jax_trn3.compiler import Program

BYTECODE = b"ML\xefR"

TEXT = b"""
module @sum {
  func.func public @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
    %0 = stablehlo.add %a, %b : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}
"""


def lowered(function: Callable[..., Any], *shapes: tuple[int, ...], **jit: Any) -> Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    module = jax.jit(function, **jit).lower(*arguments).compiler_ir("stablehlo")
    return Program(mlir.module_to_bytecode(module))


def test_text_becomes_bytecode_of_the_same_module() -> None:
    program = Program.parse(TEXT, "mlir")
    assert program.code.startswith(BYTECODE)
    assert "stablehlo.add" in str(program.module())


def test_bytecode_is_passed_on_untouched() -> None:
    code = Program.parse(TEXT, "mlir").code
    assert Program.parse(code, "mlir").code is code


def test_module_without_a_name_is_taken() -> None:
    program = Program.parse(TEXT.replace(b"@sum", b""), "mlir")
    assert "stablehlo.add" in str(program.module())


@pytest.mark.parametrize(
    "code",
    [b"this is not MLIR", b"\xff\xfe\x00" * 20, TEXT[:-20], b"module { foo.bar }"],
    ids=["prose", "binary", "truncated", "unknown operation"],
)
def test_text_that_is_not_stablehlo_is_a_value_error(code: bytes) -> None:
    with pytest.raises(ValueError, match="not a StableHLO module"):
        Program.parse(code, "mlir")


@pytest.mark.parametrize("format", ["hlo", "hlo_with_config", "", "MLIR"])
def test_other_formats_are_refused_by_name(format: str) -> None:
    with pytest.raises(ValueError, match=f"mlir.*{format!r}"):
        Program.parse(TEXT, format)


@pytest.mark.parametrize("donated", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_parameters_that_outputs_take_over_are_donated(donated: tuple[int, ...]) -> None:
    program = lowered(
        lambda a, b, c: (a + 1, b * 2, c - 3), (2,), (3,), (4,), donate_argnums=donated
    )
    assert program.donated == donated


def test_sharded_parameters_are_donated() -> None:
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("d",)), jax.P("d"))
    program = lowered(
        lambda a, b: (a + 1, b + 1), (8,), (16,), donate_argnums=1, in_shardings=sharding
    )
    assert "jax.buffer_donor" in str(program.module())  # where the output's sharding is open
    assert program.donated == (1,)


def test_mark_in_a_string_that_is_no_attribute_donates_nothing() -> None:
    program = Program.parse(TEXT.replace(b"@sum", b'@"tf.aliasing_output"'), "mlir")
    assert program.mentions(b"tf.aliasing_output")
    assert program.donated == ()


def test_mentions_finds_what_the_module_says() -> None:
    program = Program.parse(TEXT, "mlir")
    assert program.mentions(b"sum")
    assert not program.mentions(b"callback", b"tf.aliasing_output")
