"""`check` of whole programs, and how findings read."""

import dataclasses
import inspect
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax
from rich.console import Console

import jax_trn3
from jax_trn3 import Finding, check
from jax_trn3.neuron_sdk import Findings

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
HERE = __file__


def line_of(text: str, function: Any) -> int:
    """The line of a function in which some text stands."""
    lines, first = inspect.getsourcelines(function)
    return first + next(at for at, line in enumerate(lines) if text in line)


def argmax(x: jax.Array) -> jax.Array:
    return jnp.argmax(x, axis=1)


def indices(x: jax.Array) -> jax.Array:
    return jnp.argmax(x, axis=1)


@pytest.fixture
def rbg() -> Iterator[None]:
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    yield
    jax.config.update("jax_default_prng_impl", before)


class MLP(nnx.Module):
    """In bfloat16, with parameters in float32."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(16, 64, dtype=jnp.bfloat16, rngs=rngs)
        self.norm = nnx.LayerNorm(64, dtype=jnp.bfloat16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(64, 16, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.dropout(jax.nn.gelu(self.norm(self.up(x)))))


@nnx.jit
def mlp_step(model: MLP, optimizer: nnx.Optimizer[MLP], x: jax.Array, y: jax.Array) -> jax.Array:
    def loss(model: MLP) -> jax.Array:
        return jnp.mean((model(x).astype(jnp.float32) - y) ** 2)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def mlp_arguments() -> tuple[Any, ...]:
    def make() -> tuple[MLP, nnx.Optimizer[MLP]]:
        model = MLP(nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)

    batch = jax.ShapeDtypeStruct((32, 16), jnp.float32)
    return *nnx.eval_shape(make), batch, batch


def test_clean_training_step_has_no_finding(rbg: None) -> None:
    findings = check(mlp_step, *mlp_arguments())
    assert findings == []
    assert str(findings) == "nothing found that the Neuron SDK's pages speak of"


def test_the_same_step_with_threefry_has() -> None:
    findings = check(mlp_step, *mlp_arguments())
    assert {finding.rule for finding in findings} == {"threefry"}
    assert {finding.line for finding in findings} == {line_of("self.dropout(", MLP.__call__)}


def test_training_step_of_the_demo() -> None:
    train = pytest.importorskip("examples.train_gpt.train")
    model_file = inspect.getsourcefile(train.GPT)
    model_lines = Path(model_file).read_text().splitlines()

    def in_model(text: str) -> int:
        return next(at for at, line in enumerate(model_lines, 1) if text in line)

    tokens = jax.ShapeDtypeStruct((16, 129), jnp.int32)
    with jax.set_mesh(train.make_mesh(jax.devices())):
        model, optimizer = nnx.eval_shape(lambda: train.initialize.fun(train.TrainConfig()))
        findings = check(train.train_step, model, optimizer, tokens)
    embed = in_model("self.embed(tokens)")
    products = [
        in_model(text)
        for text in (
            "self.query_key_value(x)", "jax.nn.dot_product_attention(", "self.out(attended)",
            "self.down(jax.nn.gelu(self.up(x)))", "self.head(self.norm(x))",
        )
    ]  # fmt: skip
    loss = line_of("softmax_cross_entropy_with_integer_labels", train.loss_fn)
    assert {(finding.rule, finding.file, finding.line) for finding in findings} == {
        ("gather-bounds", model_file, embed),
        ("scatter-bounds", model_file, embed),
        ("gather-bounds", train.__file__, loss),
        ("scatter-bounds", train.__file__, loss),
        *(("float32-product", model_file, line) for line in products),
    }
    # Four layers, one product forward and two backward.
    counts = {f.line: f.count for f in findings if f.rule == "float32-product"}
    assert counts[products[0]] == 12
    assert counts[products[3]] == 24


def test_a_library_function_is_found_where_each_caller_calls_it() -> None:
    def twice(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.argmax(x, axis=1)
        second = jax.jit(indices)(-x)
        third = jax.jit(argmax)(x * 2)
        return first, second + third + jnp.argmin(x, axis=1) + jnp.sort(x, axis=1).astype(int)[:, 0]

    check(argmax, X)  # JAX has traced it, elsewhere, before
    jax.make_jaxpr(lambda x: jnp.sort(x, axis=1))(X)
    found = {(f.rule, f.line) for f in check(twice, X)}
    assert found == {
        ("variadic-reduction", line_of("first = ", twice)),
        ("variadic-reduction", line_of("jnp.argmax", indices)),
        ("variadic-reduction", line_of("third = ", twice)),  # named like one of JAX's
        ("variadic-reduction", line_of("jnp.argmin", twice)),
        ("sort-floats", line_of("jnp.sort", twice)),
    }


def wrapped_in_scan(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: lax.scan(lambda carry, row: (carry, function(row[None])), x, x)[1]


def wrapped_in_custom_vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda x: (function(x), x), lambda x, _: (x,))
    return wrapped


@pytest.mark.parametrize(
    "wrap",
    [jax.jit, jax.checkpoint, jax.vmap, jax.remat, wrapped_in_scan, wrapped_in_custom_vjp],
    ids=lambda wrap: wrap.__name__,
)
def test_line_is_found_through_transformations(wrap: Callable[..., Any]) -> None:
    def function(x: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.sin(x), axis=-1) + lax.top_k(x.astype(int), 1)[1][..., 0]

    findings = check(lambda x: jax.jit(wrap(function))(x), X)
    assert {finding.rule for finding in findings} == {"variadic-reduction", "integer-top-k"}
    assert {finding.line for finding in findings} == {line_of("jnp.argmax", function)}


def test_gradient_of_a_checkpointed_layer() -> None:
    def layer(x: jax.Array) -> jax.Array:
        return jnp.take(x, lax.top_k((x[:, 0] * 9).astype(int), 2)[1], axis=0)

    def loss(x: jax.Array) -> jax.Array:
        return jax.checkpoint(layer)(x).sum()

    findings = check(jax.grad(loss), X)
    assert {finding.rule for finding in findings} == {
        "gather-bounds", "scatter-bounds", "integer-top-k",
    }  # fmt: skip
    assert {finding.line for finding in findings} == {line_of("jnp.take", layer)}


def test_name_stack_leads_to_the_operation() -> None:
    def named(x: jax.Array) -> jax.Array:
        with jax.named_scope("router"):
            return lax.top_k(x.astype(int), 2)[1]

    (finding,) = check(named, X)
    assert finding.name_stack == "jit(named)/router/top_k"


def test_argument_of_a_dtype_is_named_where_the_function_is() -> None:
    def real(spectrum: jax.Array) -> jax.Array:
        return spectrum.real

    (finding,) = check(real, jax.ShapeDtypeStruct((3,), jnp.complex64))
    assert finding.message.startswith("argument `spectrum`, c64[3]: ")
    assert finding.line == line_of("def real", real)


def test_operations_of_a_line_are_one_finding() -> None:
    (finding,) = check(lambda x: (jnp.argmax(x), jnp.argmin(x), jnp.argmax(x, axis=1)), X)
    assert finding.count == 3
    assert "(3 times on this line)" in str(finding)


def test_findings_come_gravest_first() -> None:
    def function(x: jax.Array) -> Any:
        product = x @ x.T
        return jnp.sort(product), jnp.argmax(product)

    findings = check(function, X)
    assert [finding.severity for finding in findings] == ["refused", "changed", "slow"]
    assert findings.summary() == "3 findings: 1 refused, 1 changed, 1 slow"
    assert [finding.rule for finding in findings.of("slow")] == ["float32-product"]


def test_text_says_what_where_and_what_to_do() -> None:
    text = str(check(argmax, X))
    assert f"refused [variadic-reduction] {HERE}:{line_of('jnp.argmax', argmax)}" in text
    assert "one reduction of 2 arrays, f32[4,8], i32[4,8]" in text
    assert "way out: " in text
    assert "jax-neuronx-known-issues.rst" in text
    assert text.endswith("1 finding: 1 refused")


def test_rich_shows_colours() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=80).print(check(argmax, X))
    assert "\x1b[" in out.getvalue()


def test_json_has_every_field() -> None:
    findings = check(argmax, X)
    (found,) = json.loads(findings.to_json())
    assert Finding(**found | {"pages": tuple(found["pages"])}) == findings[0]


def test_finding_is_frozen_and_findings_are_a_list() -> None:
    findings = check(argmax, X)
    assert isinstance(findings, list)
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings[0].count = 3  # type: ignore[misc]


def test_static_arguments_and_keywords() -> None:
    def function(x: jax.Array, axis: int, *, offset: jax.Array) -> jax.Array:
        return jnp.argmax(x + offset, axis)

    plain = check(function, X, 1, static_argnums=1, offset=jnp.float32(1))
    jitted = check(jax.jit(function, static_argnums=1), X, 1, offset=jnp.float32(1))
    assert plain == jitted
    assert len(plain) == 1


def test_arguments_may_be_arrays_of_any_platform() -> None:
    cpu = jax.device_put(jnp.ones((4, 8)), jax.devices("cpu")[0])
    assert check(argmax, cpu) == check(argmax, X) == check(argmax, jnp.ones((4, 8)))


def test_nothing_runs_and_nothing_is_allocated() -> None:
    huge = jax.ShapeDtypeStruct((1 << 30, 1 << 30), jnp.float32)
    live = len(jax.live_arrays())
    seen: list[Any] = []

    def function(x: jax.Array) -> jax.Array:
        jax.debug.callback(seen.append, x[0, 0])
        return x.at[0].set(1.0)

    assert [finding.rule for finding in check(function, huge)] == ["callback"]
    assert seen == []
    assert len(jax.live_arrays()) == live


def test_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="check needs a function, got int"):
        check(3)  # type: ignore[arg-type]


def test_static_arguments_of_a_jitted_function_are_its_own() -> None:
    with pytest.raises(TypeError, match="leave them out"):
        check(jax.jit(argmax), X, static_argnums=1)


def test_what_cannot_be_traced_says_so() -> None:
    def function(x: jax.Array) -> jax.Array:
        return x if x[0, 0] > 0 else -x

    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        check(function, X)
    assert caught.value.__notes__[-1] == "jax_trn3.check could not trace 'function'"


def test_operation_of_ours_is_one_finding_and_not_what_it_is_made_of() -> None:
    q = jax.ShapeDtypeStruct((2, 16, 4, 32), jnp.bfloat16)
    findings = check(lambda q: jax_trn3.dot_product_attention(q, q, q), q)
    assert [finding.rule for finding in findings] == ["trn3-operation"]


def test_a_process_on_the_cpu_gets_the_same(run_python: Any) -> None:
    code = (
        "import jax, jax.numpy as jnp, jax_trn3\n"
        "x = jax.ShapeDtypeStruct((4, 8), jnp.float32)\n"
        "print(*[f.rule for f in jax_trn3.check(lambda x: jnp.argmax(x @ x.T), x)])\n"
    )
    done = run_python(code, JAX_PLATFORMS="cpu")
    assert done.stdout.split() == ["variadic-reduction", "float32-product"], done.stderr


def test_importing_does_not_import_rich(run_python: Any) -> None:
    done = run_python("import sys, jax_trn3.neuron_sdk; print('rich' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_empty_findings_read_well() -> None:
    assert Findings().to_json() == "[]"
