"""Calls of JAX's functions, by name: (function, shapes). Each is estimated, and its gradient."""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

F32, I32, BOOL = jnp.float32, jnp.int32, jnp.bool_
Shape = jax.ShapeDtypeStruct
Call = tuple[Callable[..., object], tuple[Shape, ...]]

X = Shape((64, 48), F32)
ROW = Shape((48,), F32)
SQUARE = Shape((32, 32), F32)
INTEGERS = Shape((64, 48), I32)
FLAGS = Shape((64, 48), BOOL)
COMPLEX = Shape((16, 16), jnp.complex64)
IMAGE = Shape((2, 16, 16, 8), F32)
KEY = Shape((2,), jnp.uint32)

UNARY = [
    "abs",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "deg2rad",
    "degrees",
    "exp",
    "exp2",
    "expm1",
    "fabs",
    "floor",
    "i0",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "log",
    "log10",
    "log1p",
    "log2",
    "negative",
    "positive",
    "rad2deg",
    "reciprocal",
    "rint",
    "round",
    "sign",
    "signbit",
    "sin",
    "sinc",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "nan_to_num",
]
BINARY = [
    "add",
    "arctan2",
    "copysign",
    "divide",
    "equal",
    "float_power",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "greater",
    "greater_equal",
    "heaviside",
    "hypot",
    "less",
    "less_equal",
    "logaddexp",
    "logaddexp2",
    "maximum",
    "minimum",
    "mod",
    "multiply",
    "nextafter",
    "not_equal",
    "power",
    "remainder",
    "subtract",
    "true_divide",
]
INTEGER = ["bitwise_and", "bitwise_or", "bitwise_xor", "gcd", "lcm", "left_shift", "right_shift"]
REDUCTIONS = [
    "all",
    "any",
    "argmax",
    "argmin",
    "average",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "max",
    "mean",
    "median",
    "min",
    "nanmax",
    "nanmean",
    "nanmin",
    "nanprod",
    "nanstd",
    "nansum",
    "nanvar",
    "prod",
    "ptp",
    "std",
    "sum",
    "var",
    "argsort",
    "sort",
    "ravel",
]
MOVEMENT: dict[str, Call] = {
    "transpose": (jnp.transpose, (X,)),
    "swapaxes": (lambda x: jnp.swapaxes(x, 0, 2), (Shape((8, 16, 24), F32),)),
    "reshape": (lambda x: x.reshape(48, 64).T, (X,)),
    "flip": (jnp.flip, (X,)),
    "roll": (lambda x: jnp.roll(x, 3, axis=1), (X,)),
    "rot90": (jnp.rot90, (X,)),
    "tile": (lambda x: jnp.tile(x, (2, 3)), (X,)),
    "repeat": (lambda x: jnp.repeat(x, 3, axis=0), (X,)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y]), (X, X)),
    "stack": (lambda x, y: jnp.stack([x, y], 1), (X, X)),
    "split": (lambda x: jnp.split(x, 4, axis=1), (X,)),
    "pad": (lambda x: jnp.pad(x, ((1, 2), (3, 4))), (X,)),
    "slice": (lambda x: x[3:40:2, 5:], (X,)),
    "index": (lambda x, i: x[i], (X, Shape((10,), I32))),
    "update": (lambda x, y: x.at[3:5].set(y), (X, Shape((2, 48), F32))),
    "scatter add": (lambda x, i, y: x.at[i].add(y), (X, Shape((9,), I32), Shape((9, 48), F32))),
    "take_along_axis": (lambda x, i: jnp.take_along_axis(x, i, 1), (X, Shape((64, 4), I32))),
    "where": (lambda c, x, y: jnp.where(c, x, y), (FLAGS, X, X)),
    "diag": (jnp.diag, (SQUARE,)),
    "tril": (jnp.tril, (SQUARE,)),
    "one_hot": (lambda i: jax.nn.one_hot(i, 16), (Shape((64,), I32),)),
    "searchsorted": (jnp.searchsorted, (ROW, X)),
    "interp": (jnp.interp, (X, ROW, ROW)),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, 0), (8, 48)), (X, Shape((), I32))),
    "dynamic_update": (
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)),
        (X, Shape((8, 48), F32), Shape((), I32)),
    ),
    "iota": (lambda: lax.broadcasted_iota(F32, (64, 48), 1) * 2, ()),
    "top_k": (lambda x: lax.top_k(x, 5)[0], (X,)),
    "approx_max_k": (lambda x: lax.approx_max_k(x, 5)[0], (X,)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 10), (X,)),
    "bitcast": (lambda x: lax.bitcast_convert_type(x, I32), (X,)),
    "convert": (lambda x: x.astype(jnp.bfloat16).astype(jnp.float8_e4m3fn), (X,)),
    "clamp": (lambda x: lax.clamp(-1.0, x, 1.0), (X,)),
    "cummax": (lambda x: lax.cummax(x, axis=1), (X,)),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, axis=0), (X,)),
    "reduce_window": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"), (X,)
    ),
    "unique": (lambda x: jnp.unique(x, size=8), (Shape((64,), I32),)),
    "bincount": (lambda i: jnp.bincount(i, length=16), (Shape((64,), I32),)),
    "histogram": (lambda x: jnp.histogram(x, 8)[0], (X,)),
    "convolve": (jnp.convolve, (ROW, Shape((5,), F32))),
    "segment_sum": (lambda x, i: jax.ops.segment_sum(x, i, 8), (X, Shape((64,), I32))),
}  # fmt: skip
PRODUCTS: dict[str, Call] = {
    "dot": (jnp.dot, (X, X_T := Shape((48, 16), F32))),
    "matmul": (jnp.matmul, (Shape((4, 64, 48), F32), Shape((4, 48, 16), F32))),
    "einsum": (lambda x, y: jnp.einsum("bij,bkj->ikb", x, y), (Shape((4, 8, 16), F32),) * 2),
    "vdot": (jnp.vdot, (ROW, ROW)),
    "outer": (jnp.outer, (ROW, ROW)),
    "tensordot": (lambda x, y: jnp.tensordot(x, y, 1), (X, X_T)),
    "kron": (jnp.kron, (Shape((8, 8), F32), Shape((4, 4), F32))),
    "integer dot": (jnp.dot, (INTEGERS, Shape((48, 16), I32))),
    "conv": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (IMAGE, Shape((3, 3, 8, 16), F32)),
    ),
    "conv strided": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (IMAGE, Shape((3, 3, 8, 16), F32)),
    ),
    "ragged_dot": (
        lax.ragged_dot, (Shape((64, 48), F32), Shape((4, 48, 16), F32), Shape((4,), I32))
    ),
}  # fmt: skip
NN = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_sign",
    "softmax",
    "softplus",
    "sparse_plus",
    "squareplus",
    "standardize",
    "swish",
    "tanh",
]
LINALG: dict[str, Call] = {
    "cholesky": (jnp.linalg.cholesky, (SQUARE,)),
    "det": (jnp.linalg.det, (SQUARE,)),
    "eigh": (jnp.linalg.eigh, (SQUARE,)),
    "inv": (jnp.linalg.inv, (SQUARE,)),
    "lstsq": (lambda a, b: jnp.linalg.lstsq(a, b)[0], (SQUARE, Shape((32,), F32))),
    "matrix_power": (lambda a: jnp.linalg.matrix_power(a, 3), (SQUARE,)),
    "matrix_rank": (jnp.linalg.matrix_rank, (SQUARE,)),
    "norm": (jnp.linalg.norm, (SQUARE,)),
    "pinv": (jnp.linalg.pinv, (SQUARE,)),
    "qr": (jnp.linalg.qr, (SQUARE,)),
    "slogdet": (jnp.linalg.slogdet, (SQUARE,)),
    "solve": (jnp.linalg.solve, (SQUARE, Shape((32,), F32))),
    "svd": (jnp.linalg.svd, (SQUARE,)),
    "svdvals": (jnp.linalg.svdvals, (SQUARE,)),
    "triangular_solve": (
        lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True), (SQUARE, SQUARE)
    ),
    "expm": (jax.scipy.linalg.expm, (SQUARE,)),
    "lu": (jax.scipy.linalg.lu, (SQUARE,)),
    "schur": (lambda a: jax.scipy.linalg.schur(a)[0], (SQUARE,)),
    "eig": (jnp.linalg.eig, (SQUARE,)),
}  # fmt: skip
OTHERS: dict[str, Call] = {
    "fft": (jnp.fft.fft, (COMPLEX,)),
    "rfft2": (jnp.fft.rfft2, (SQUARE,)),
    "irfft": (jnp.fft.irfft, (COMPLEX,)),
    "complex": (lambda x, y: (x * y + 1j).real, (COMPLEX, COMPLEX)),
    "uniform": (lambda k: jax.random.uniform(k, (64, 48)), (KEY,)),
    "normal": (lambda k: jax.random.normal(k, (64, 48)), (KEY,)),
    "randint": (lambda k: jax.random.randint(k, (64,), 0, 9), (KEY,)),
    "categorical": (lambda k, x: jax.random.categorical(k, x), (KEY, X)),
    "permutation": (lambda k: jax.random.permutation(k, 64), (KEY,)),
    "rbg": (lambda: jax.random.normal(jax.random.key(0, impl="rbg"), (64, 48)), ()),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c), x[0], x)[0], (X,)),
    "fori_loop": (lambda x: lax.fori_loop(0, 5, lambda i, x: x @ x, x), (SQUARE,)),
    "cond": (lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), (Shape((), BOOL), X)),
    "switch": (lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), (Shape((), I32), X)),
    "map": (lambda x: lax.map(jnp.sort, x), (X,)),
    "associative_scan": (lambda x: lax.associative_scan(jnp.add, x), (X,)),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))), (X,)),
    "erf": (jax.scipy.special.erf, (X,)),
    "erfinv": (jax.scipy.special.erfinv, (X,)),
    "gammaln": (jax.scipy.special.gammaln, (X,)),
    "digamma": (jax.scipy.special.digamma, (X,)),
    "betainc": (jax.scipy.special.betainc, (ROW, ROW, ROW)),
    "i0e": (jax.scipy.special.i0e, (X,)),
    "zeta": (lambda x: jax.scipy.special.zeta(x + 2, 1.5), (ROW,)),
    "attention": (
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v), (Shape((2, 64, 4, 16), F32),) * 3
    ),
    "pure_callback": (lambda x: jax.pure_callback(lambda x: x, x, x), (X,)),
    "float64": (lambda x: x.astype(jnp.int8) + 1, (X,)),
}  # fmt: skip


def calls() -> Iterator[tuple[str, Callable[..., object], tuple[Shape, ...]]]:
    """(name, function, shapes) of every call."""
    for name in UNARY:
        yield f"jnp.{name}", getattr(jnp, name), (X,)
    for name in BINARY:
        yield f"jnp.{name}", getattr(jnp, name), (X, X)
    for name in INTEGER:
        yield f"jnp.{name}", getattr(jnp, name), (INTEGERS, INTEGERS)
    for name, axis in itertools.product(REDUCTIONS, (0, 1)):
        function = getattr(jnp, name)
        if name == "ravel":
            yield "jnp.ravel", lambda x: jnp.ravel(x.T), (X,)
        else:
            yield f"jnp.{name} {axis}", lambda x, f=function, a=axis: f(x, axis=a), (X,)
    for name in NN:
        yield f"nn.{name}", getattr(jax.nn, name), (X,)
    for table in (MOVEMENT, PRODUCTS, LINALG, OTHERS):
        for name, (function, shapes) in table.items():
            yield name, function, shapes


def gradient(function: Callable[..., object], shapes: tuple[Shape, ...]) -> Callable[..., object]:
    """Derivatives by every floating-point operand, of the sum of all floating-point results."""

    def total(*args: jax.Array) -> jax.Array:
        leaves = jax.tree.leaves(function(*args))
        floating = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum((jnp.sum(x) for x in floating), jnp.float32(0))

    places = tuple(k for k, s in enumerate(shapes) if jnp.issubdtype(s.dtype, jnp.floating))
    return jax.grad(total, argnums=places)


def has_gradient(shapes: tuple[Shape, ...]) -> bool:
    """Whether there is anything to differentiate by."""
    return any(jnp.issubdtype(s.dtype, jnp.floating) for s in shapes)
