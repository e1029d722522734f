"""`check`: a program against the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax._src import config

from .equations import equations, users_functions, values
from .finding import SEVERITIES, Finding, Findings
from .operations import operations
from .place import Place
from .rule import Rule
from .table import RULES


def check(
    fun: Callable[..., Any],
    *args: Any,
    static_argnums: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> Findings:
    """What the real Neuron SDK would refuse, change or do slowly in a program.

    The function is traced and lowered; nothing runs, and no memory is allocated on a device. The
    rules, and what cannot be seen in a program, are in docs/neuron_sdk.md.

    **Arguments:**

    - `fun`: a function of JAX, also a jitted one (`jax.jit`, `nnx.jit`).
    - `args`, `kwargs`: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
    - `static_argnums`: as in `jax.jit`; of a jitted function they are its own.

    **Returns:** the findings, the gravest first, then by file and line; `print` shows them.
    Operations of one line that the same rule is about are one finding.

    **Raises:** `TypeError` if `fun` is no function, or is jitted and `static_argnums` are given;
    what tracing raises if `fun` cannot be traced.

    ```python
    step = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    print(jax_trn3.check(lambda x: jnp.argmax(x, axis=1), step))
    ```
    """
    traced = _traced(fun, args, kwargs, static_argnums)
    found = [*_in_trace(traced.jaxpr), *_in_module(traced)]
    return Findings(sorted(_merged(found), key=_order))


def _traced(fun: Any, args: Any, kwargs: Any, static_argnums: int | Sequence[int] | None) -> Any:
    if not callable(fun):
        raise TypeError(f"check needs a function, got {type(fun).__name__}")
    jitted = hasattr(fun, "trace")
    if jitted and static_argnums is not None:
        raise TypeError(
            "static_argnums are those that the function was jitted with; leave them out"
        )
    try:
        traced = (fun if jitted else jax.jit(fun, static_argnums=static_argnums)).trace(
            *args, **kwargs
        )
    except Exception as error:
        error.add_note(f"jax_trn3.check could not trace {getattr(fun, '__name__', fun)!r}")
        raise
    return getattr(traced, "traced", traced)  # nnx.jit has JAX's in its own


def _in_trace(closed: Any) -> Iterator[Finding]:
    for equation in equations(closed):
        for rule in RULES:
            if rule.equation and (found := rule.equation(equation)):
                yield _finding(rule, found, equation.where)
    for value, sources in values(closed):
        for rule in RULES:
            if not rule.dtype or not rule.dtype(value.dtype):
                continue
            if not any(rule.dtype(source.dtype) for source in sources):
                yield _finding(rule, f"{value.origin}, {value.text}", value.where)


def _in_module(traced: Any) -> Iterator[Finding]:
    with config.traceback_in_locations_limit(-1):
        lowered = traced.lower(lowering_platforms=("trn3",))
    module = lowered.compiler_ir("stablehlo")
    with module.context:
        for operation in operations(module, users_functions(traced.jaxpr)):
            for rule in RULES:
                if rule.operation and (found := rule.operation(operation)):
                    yield _finding(rule, found, operation.where)


def _finding(rule: Rule, found: str, where: Place) -> Finding:
    return Finding(
        severity=rule.severity,
        rule=rule.id,
        message=f"{found}: {rule.says}",
        way_out=rule.way_out,
        file=where.file,
        line=where.line,
        name_stack=where.name_stack,
        pages=rule.pages,
    )


def _order(finding: Finding) -> tuple[int, str, int]:
    return SEVERITIES.index(finding.severity), finding.file or "", finding.line or 0


def _merged(findings: list[Finding]) -> list[Finding]:
    """One for each rule and line."""
    merged: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        key = (finding.rule, finding.file, finding.line or finding.name_stack)
        known = merged.get(key)
        merged[key] = replace(known, count=known.count + 1) if known else finding
    return list(merged.values())
