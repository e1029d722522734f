"""The setting of matmul_precision: configuration, environment, context manager.

Two options of JAX's own configuration, in the keys of all its caches:

| option, environment variable in capitals | value |
|---|---|
| jax_trn3_matmul_precision | default, bf16, mxfp8 or mxfp4 |
| jax_trn3_matmul_precision_except_scopes | patterns, as a tuple or separated by commas |

A program has the setting that is in force when it is lowered, that is, when it is first called (or
`.lower` is). Inside of a traced function that would be too late for the context manager: there it
marks the operations that are traced in it (JAX's xla_metadata), and so those of their backward
pass, which JAX gives the same mark.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jax._src import config, core, xla_metadata_lib
from jax._src.interpreters import mlir

from . import name_scopes

PRECISIONS = ("default", "bf16", "mxfp8", "mxfp4")
"""Allowed values of jax_trn3_matmul_precision."""

_NAME = "jax_trn3_matmul_precision"
_EXCEPT_NAME = "jax_trn3_matmul_precision_except_scopes"


@dataclass(frozen=True)
class Setting:
    """What matmul_precision is set to."""

    precision: str
    """One of PRECISIONS."""

    except_scopes: tuple[str, ...]
    """Patterns of the name scopes that stay at "default"."""


def matmul_precision(
    precision: str, *, except_scopes: Iterable[str] | str | None = None
) -> contextlib.AbstractContextManager[None]:
    """Every dot, einsum and convolution of a program on trn3 runs in this precision.

    A context manager (and decorator), for the current thread. Without one,
    jax.config.update("jax_trn3_matmul_precision", ...) or the environment variable
    JAX_TRN3_MATMUL_PRECISION holds. Programs need no change, and are compiled anew when the setting
    changes. What is the same everywhere: products are summed in float32, and the result has the
    dtype that the program gave it. Backward passes are products like others: their operands are
    quantized along the axis that *they* contract.

    | precision | both operands of a product are |
    |---|---|
    | default | as they are: float32 stays float32 |
    | bf16 | rounded to bfloat16 |
    | mxfp8 | quantized to MXFP8 E4M3 in blocks along the contraction, as in mx_dot_general |
    | mxfp4 | quantized to MXFP4 E2M1, likewise |

    Several contracted axes are one, in the order of the dimension numbers; a convolution is cut
    into blocks along the input features of each group, for every position of the window apart.
    The format is the same for gradients: which operand is one, a product doesn't say. (For E5M2
    gradients call jax_trn3.mx_dot_general, which knows.)

    What stays as it is: products with an explicit precision above lax.Precision.DEFAULT (HIGH,
    HIGHEST, jax.default_matmul_precision("float32")) or an explicit algorithm; those of other
    dtypes than float32, bfloat16 and float16; trn3's own operations and Pallas kernels, which say
    themselves what they compute in; linear algebra (cholesky, qr, eigh, ...), which is no product;
    other platforms.

    A program has the setting under which it is compiled: `y, vjp = jax.vjp(f, x)` in the context
    and `vjp(ct)` after it is a forward pass in one precision and a backward pass in another. Used
    within a function that is traced, it sets what is traced in it and the backward pass of that.

    Args:
      precision: "default", "bf16", "mxfp8" or "mxfp4".
      except_scopes: patterns of name scopes whose products stay at "default", forward and backward:
        the names of jax.named_scope and of Flax linen's modules. A pattern is fnmatch's, for a
        whole name ("router", "Dense_*"), or several joined by "/" for names in this order
        ("Block_0/Dense_1"), others may lie between. A string may hold several, separated by
        commas. None: as set outside (JAX_TRN3_MATMUL_PRECISION_EXCEPT_SCOPES, or none); (): none.
        Only traced programs (jit) have scopes, operations that run one by one have none.

    Raises:
      ValueError: there is no such precision, or a pattern is empty or holds a comma.
    """
    precision = _parse_precision(precision)
    patterns = None if except_scopes is None else _parse_scopes(except_scopes)
    return _set(precision, patterns)


def current(context: mlir.LoweringRuleContext) -> Setting:
    """The setting for the operation that is lowered.

    Raises:
      ValueError: an environment variable holds no allowed value.
    """
    precision = _marks(context).get(_NAME, _precision.value)
    scopes = _marks(context).get(_EXCEPT_NAME, _except_scopes.value)
    return Setting(_parse_precision(precision), _parse_scopes(scopes))


def _marks(context: mlir.LoweringRuleContext) -> dict[str, str]:
    """What a context manager within the traced function says of the operation."""
    return (context.jaxpr_eqn_ctx and context.jaxpr_eqn_ctx.xla_metadata) or {}


def _has_exceptions(context: mlir.LoweringRuleContext) -> bool:
    return bool(_marks(context).get(_EXCEPT_NAME, _except_scopes.value))


def keep_scopes() -> None:
    """Keeps name scopes if there were exceptions so far, also for rules registered since."""
    if name_scopes.are_kept() or _except_scopes.value:
        name_scopes.keep(_has_exceptions)


def check_environment() -> None:
    """Raises ValueError if an environment variable holds no allowed value."""
    _parse_precision(_precision.get_global())
    _parse_scopes(_except_scopes.get_global())


@contextlib.contextmanager
def as_written(context: mlir.LoweringRuleContext) -> Iterator[mlir.LoweringRuleContext]:
    """Lowers with the inner context: products stay as they are, whatever the setting."""
    metadata = config.xla_metadata_context_manager
    outer = metadata.get_local()
    separate = name_scopes.separate_caches(context, name_scopes.ANY_SCOPE)
    with _precision("default"), separate as inner:
        metadata.set_local(_marked(outer, None, None))
        try:
            yield inner
        finally:
            metadata.set_local(outer)


@contextlib.contextmanager
def _set(precision: str, patterns: tuple[str, ...] | None) -> Iterator[None]:
    if patterns is None:
        patterns = _parse_scopes(_except_scopes.value)
    metadata = config.xla_metadata_context_manager
    outer = metadata.get_local()
    with _precision(precision), _except_scopes(_joined_scopes(patterns)):
        if not core.trace_state_clean():
            metadata.set_local(_marked(outer, precision, _joined_scopes(patterns)))
        try:
            yield
        finally:
            metadata.set_local(outer)


def _marked(outer: Any, precision: str | None, patterns: str | None) -> Any:
    """JAX's metadata of operations with our marks; None takes them away."""
    return xla_metadata_lib.update_metadata(outer, {_NAME: precision, _EXCEPT_NAME: patterns})


def _parse_precision(value: Any) -> str:
    if isinstance(value, str) and value in PRECISIONS:
        return value
    raise ValueError(
        f"unknown matmul precision {value!r}; allowed are {', '.join(PRECISIONS)} "
        f"(jax_trn3.matmul_precision, jax.config's {_NAME}, environment {_NAME.upper()})"
    )


def _parse_scopes(value: Any) -> tuple[str, ...]:
    patterns = value.split(",") if isinstance(value, str) and value else value
    if isinstance(patterns, Iterable):
        patterns = tuple(patterns)
        if all(isinstance(p, str) and p and "," not in p for p in patterns):
            return patterns
    raise ValueError(
        f"except_scopes must be patterns of name scopes, each of at least one character and "
        f"without a comma, got {value!r} (jax_trn3.matmul_precision, jax.config's {_EXCEPT_NAME}, "
        f"environment {_EXCEPT_NAME.upper()})"
    )


def _joined_scopes(value: Any) -> str:
    return ",".join(_parse_scopes(value))


def _on_scopes(patterns: str | None) -> None:
    if patterns:
        name_scopes.keep(_has_exceptions)


def _option(
    name: str, default: str, parse: Callable[[Any], str], hook: Any, description: str
) -> config.State:
    """An option as JAX's config.enum_state makes them, but for a bad environment variable.

    That is an error where the setting is needed. At import it would come while JAX looks for
    plugins, which logs it and goes on without the platform.
    """
    if name in config.config_states:  # this module was imported before
        return config.config_states[name]
    state = config.State(
        name,
        default,
        description,
        update_global_hook=hook,
        update_thread_local_hook=hook,
        parser=parse,
        include_in_jit_key=True,
        include_in_trace_context=True,
    )
    config.config.add_option(name, state, str, meta_args=[], meta_kwargs={"help": description})
    config.config._contextmanager_flags.add(name)
    setattr(config.Config, name, property(lambda _: state.value))
    value = os.environ.get(name.upper(), default)
    state.set_global(value)
    if hook:
        hook(value)
    return state


_precision = _option(
    _NAME,
    "default",
    _parse_precision,
    None,
    f"Precision of dots and convolutions on trn3: {', '.join(PRECISIONS)}.",
)
_except_scopes = _option(
    _EXCEPT_NAME,
    "",  # text, because absl takes the options over as flags
    _joined_scopes,
    _on_scopes,
    "Patterns of name scopes that jax_trn3_matmul_precision leaves alone, separated by commas.",
)
