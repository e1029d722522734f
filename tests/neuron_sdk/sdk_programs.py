"""For each rule a program that it is about, marked where, and one beside it that it is not."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.experimental import checkify, io_callback, sparse
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import jax_trn3

SHAPE = jax.ShapeDtypeStruct
F32 = SHAPE((8, 8), jnp.float32)
BF16 = SHAPE((8, 8), jnp.bfloat16)
INT = SHAPE((8,), jnp.int32)
RBG = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
FRY = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
MESH = AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,))


@dataclass(frozen=True)
class Case:
    """A program that a rule is about (its line ends in "# here"), and a near miss."""

    hit: Callable[..., Any]
    miss: Callable[..., Any]
    args: tuple[Any, ...] = (F32,)
    miss_args: tuple[Any, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """JAX's configuration for both of them."""
        with contextlib.ExitStack() as stack:
            for name, value in self.settings.items():
                before = getattr(jax.config, name)
                jax.config.update(name, value)
                stack.callback(jax.config.update, name, before)
            yield


CASES: dict[str, Case] = {}
Programs = tuple[Callable[..., Any], Callable[..., Any]]


def case(rule: str, *args: Any, **others: Any) -> Callable[[Callable[[], Programs]], None]:
    """A case from a function that returns its two programs."""

    def add(programs: Callable[[], Programs]) -> None:
        name = rule if rule not in CASES else f"{rule}:{programs.__name__}"
        CASES[name] = Case(*programs(), args or (F32,), **others)

    return add


@case("cond")
def _() -> Programs:
    def hit(x):
        return lax.cond(x[0, 0] > 0, lambda: x, lambda: -x)  # here

    def miss(x):
        chosen = lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
        return lax.cond(True, lambda: chosen, lambda: -x) + jnp.where(x[0, 0] > 0, x, -x)

    return hit, miss


@case("cond")
def switch() -> Programs:
    def hit(x):
        branches = [jnp.sin, jnp.cos, jnp.tan]
        return lax.switch(x[0, 0].astype(int), branches, x)  # here

    def miss(x):
        which = lax.fori_loop(0, 3, lambda i, count: count + i, 0)
        return lax.switch(which, [jnp.sin, jnp.cos, jnp.tan, jnp.exp], x)

    return hit, miss


@case("dynamic-while")
def _() -> Programs:
    def hit(x):
        return lax.while_loop(lambda y: y.sum() < 10, lambda y: y + 1, x)  # here

    def miss(x):
        def body(i, y):
            return jax.jit(lambda z: lax.fori_loop(0, 3, lambda j, w: w + i, z))(y)

        y = lax.while_loop(lambda s: s[0] < 2 * 5, lambda s: (s[0] + 1, -s[1]), (0, x))[1]
        return lax.fori_loop(0, 10, body, lax.scan(lambda c, row: (c + row, c), y[0], y)[1])

    return hit, miss


@case("dynamic-while", SHAPE((), jnp.int32), F32)
def bound_from_an_argument_through_calls() -> Programs:
    @jax.jit
    def bounded(n, x):
        return lax.fori_loop(0, n, lambda i, y: y + 1, x)  # here

    def hit(n, x):
        return bounded(3, x) + jax.jit(bounded)(jnp.minimum(n, 5), x)

    def miss(n, x):
        return bounded(3, x) + jax.jit(lambda y: bounded(4, y))(x) + n

    return hit, miss


@case("dynamic-while")
def within_an_operation() -> Programs:
    def hit(x):
        return lax.igamma(x, x)  # here

    def miss(x):
        return lax.lgamma(x)

    return hit, miss


@case("callback")
def _() -> Programs:
    def hit(x):
        jax.debug.print("{}", x)  # here
        return x

    def miss(x):
        print("at trace time", x.shape)
        return checkify.checkify(lambda y: (checkify.check(y[0, 0] > 0, "negative"), y)[1])(x)

    return hit, miss


@case("callback")
def of_a_function() -> Programs:
    def hit(x):
        return io_callback(lambda y: y, SHAPE(x.shape, x.dtype), x)  # here

    def miss(x):
        return x

    return hit, miss


@case("dynamic-shape", SHAPE(export.symbolic_shape("batch, 8"), jnp.float32), miss_args=(F32,))
def _() -> Programs:
    def hit(x):
        return x + 1  # here

    return hit, hit


@case("complex")
def _() -> Programs:
    def hit(x):
        z = lax.complex(x, x)  # here
        return (z * z).real

    def miss(x):
        return x * x - x * x, 2 * x * x

    return hit, miss


@case("float64", settings={"jax_enable_x64": True})
def _() -> Programs:
    def hit(x):
        y = x.astype(jnp.float64)  # here
        return (y + 1).astype(jnp.float32)

    def miss(x):
        return x * 2.0 + jnp.float32(1)

    return hit, miss


@case("int64", INT, settings={"jax_enable_x64": True})
def _() -> Programs:
    def hit(x):
        y = x.astype(jnp.int64)  # here
        return y * y

    def miss(x):
        return x * x + 1

    return hit, miss


@case("uint64-constant", SHAPE((3,), jnp.uint64), settings={"jax_enable_x64": True})
def _() -> Programs:
    def hit(x):
        return x + jnp.uint64(5_000_000_000)  # here

    def miss(x):
        return x + jnp.uint64(4_000_000_000)

    return hit, miss


@case("fp8-kind")
def _() -> Programs:
    def hit(x):
        return x.astype(jnp.float8_e5m2fnuz).astype(x.dtype)  # here

    def miss(x):
        return x.astype(jnp.float8_e4m3).astype(x.dtype), x.astype(jnp.float8_e5m2)

    return hit, miss


@case("fp8-e4m3fn")
def _() -> Programs:
    def hit(x):
        return x.astype(jnp.float8_e4m3fn)  # here

    def miss(x):
        return x.astype(jnp.float8_e4m3)

    return hit, miss


@case("sub-byte")
def _() -> Programs:
    def hit(x):
        return x.astype(jnp.float4_e2m1fn)  # here

    def miss(x):
        return x.astype(jnp.int8)

    return hit, miss


@case("sub-byte")
def integers() -> Programs:
    def hit(x):
        return x.astype(jnp.int4)  # here

    def miss(x):
        return x.astype(jnp.uint8), x > 0

    return hit, miss


@case("threefry", F32, FRY, miss_args=(F32, RBG))
def _() -> Programs:
    def hit(x, key):
        return x + jax.random.normal(key, x.shape)  # here

    return hit, hit


@case("randint", RBG)
def _() -> Programs:
    def hit(key):
        return jax.random.randint(key, (3,), 0, 10)  # here

    def miss(key):
        return jnp.floor(jax.random.uniform(key, (3,)) * 10).astype(jnp.int32)

    return hit, miss


@case("random-algorithm", SHAPE((4,), jnp.uint32))
def _() -> Programs:
    def hit(key):
        return lax.rng_bit_generator(key, (8,), algorithm=lax.RandomAlgorithm.RNG_PHILOX)  # here

    def miss(key):
        return lax.rng_bit_generator(key, (8,))

    return hit, miss


@case("random-initialization", RBG, miss_args=(RBG, BF16))
def _() -> Programs:
    def hit(key):
        return jax.random.normal(key, (8, 8))  # here

    def miss(key, x):
        return jax.random.bernoulli(key, 0.5, x.shape) * x

    return hit, miss


@case("integer-product", SHAPE((8, 8), jnp.int8))
def _() -> Programs:
    def hit(x):
        return x @ x  # here

    def miss(x):
        return (x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)).astype(jnp.int8) * x

    return hit, miss


@case("float32-product", F32)
def _() -> Programs:
    def hit(x):
        return x @ x  # here

    def miss(x):
        y = x.astype(jnp.bfloat16)
        return jnp.dot(y, y, preferred_element_type=jnp.float32)

    return hit, miss


@case("dot-algorithm")
def _() -> Programs:
    def hit(x):
        return jnp.dot(x, x, precision=lax.DotAlgorithmPreset.BF16_BF16_F32)  # here

    def miss(x):
        default = jnp.dot(x, x, precision=lax.DotAlgorithmPreset.DEFAULT)
        return default + jnp.dot(x, x, precision=lax.Precision.HIGHEST)

    return hit, miss


PADDING = ((8, 8), (8, 8))
IMAGE = SHAPE((4, 4, 8, 8), jnp.bfloat16)


@case("both-dilations", IMAGE)
def _() -> Programs:
    def hit(x):
        return lax.conv_general_dilated(  # here
            x, x, (1, 1), PADDING, lhs_dilation=(2, 2), rhs_dilation=(1, 2)
        )

    def miss(x):
        return lax.conv_general_dilated(x, x, (2, 2), "SAME", rhs_dilation=(2, 2))

    return hit, miss


@case("stride-and-dilation", IMAGE)
def _() -> Programs:
    def hit(x):
        return lax.conv_general_dilated(x, x, (2, 2), PADDING, lhs_dilation=(2, 1))  # here

    def miss(x):
        return lax.conv_general_dilated(x, x, (1, 1), PADDING, lhs_dilation=(2, 2))

    return hit, miss


@case("variadic-reduction")
def _() -> Programs:
    def hit(x):
        return jnp.argmax(x, axis=1)  # here

    def miss(x):
        n = x.shape[1]
        return jnp.min(jnp.where(x == x.max(1, keepdims=True), jnp.arange(n), n), 1)

    return hit, miss


@case("variadic-window")
def _() -> Programs:
    def hit(x):
        def both(a, b):
            return jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1])

        start = (-jnp.inf, jnp.inf)
        return lax.reduce_window((x, x), start, both, (2, 2), (1, 1), "VALID")  # here

    def miss(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID")

    return hit, miss


@case("base-dilation")
def _() -> Programs:
    def hit(x):
        return lax.reduce_window(  # here
            x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID", base_dilation=(1, 2)
        )

    def miss(x):
        return lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 2), "SAME", base_dilation=(1, 1))

    return hit, miss


@case("window-dilation")
def _() -> Programs:
    def hit(x):
        return lax.reduce_window(  # here
            x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID", window_dilation=(1, 2)
        )

    def miss(x):
        return lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 2), "SAME", window_dilation=(1, 1))

    return hit, miss


@case("sort-comparator", INT)
def _() -> Programs:
    def hit(x):
        return lax.sort((x, -x, x * 2), num_keys=2)  # here

    def miss(x):
        return lax.sort((x, -x, x * 2), num_keys=1)

    return hit, miss


@case("sort-floats", miss_args=(INT,))
def _() -> Programs:
    def hit(x):
        return jnp.sort(x, axis=0)  # here

    def miss(x):
        return jnp.sort(x), jnp.argsort(x)

    return hit, miss


@case("integer-top-k", INT)
def _() -> Programs:
    def hit(x):
        return lax.top_k(x, 3)  # here

    def miss(x):
        return lax.top_k(x.astype(jnp.float32), 3)

    return hit, miss


@case("gather-bounds", F32, INT)
def _() -> Programs:
    def hit(x, at):
        return jnp.take(x, at, axis=0)  # here

    def miss(x, at):
        clipped = jnp.take(x, at, axis=0, mode="clip")
        promised = x.at[at].get(mode="promise_in_bounds")
        return clipped + promised + x[at[0]] + x[3] + x[jnp.array([1, 0, 3, 2, 5, 4, 7, 6])]

    return hit, miss


@case("scatter-bounds", F32, INT)
def _() -> Programs:
    def hit(x, at):
        return x.at[at].set(0)  # here

    def miss(x, at):
        return x.at[at].set(0, mode="promise_in_bounds").at[at].add(1, mode="clip").at[3].set(1)

    return hit, miss


@case("scatter-bounds", F32, INT)
def of_a_gradient() -> Programs:
    def rows(x, at, mode):
        return x.at[at].get(mode=mode).sum()  # here

    def hit(x, at):
        return jax.grad(rows)(x, at, "fill")

    def miss(x, at):
        return jax.grad(rows)(x, at, "promise_in_bounds")

    return hit, miss


def _rows(x, count):
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    at = lax.iota(jnp.int32, count).reshape(count, 1)
    return numbers, at


@case("iota-bounds")
def _() -> Programs:
    def hit(x):
        numbers, at = _rows(x, 10)
        mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
        return lax.gather(x, at, numbers, (1, 8), mode=mode)  # here

    def miss(x):
        numbers, at = _rows(x, 8)
        return lax.gather(x, at, numbers, (1, 8))

    return hit, miss


@case("iota-bounds")
def of_scatter() -> Programs:
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))

    def hit(x):
        at = lax.iota(jnp.int32, 10).reshape(10, 1)
        return lax.scatter(x, at, jnp.ones((10, 8)), numbers)  # here

    def miss(x):
        at = lax.iota(jnp.int32, 8).reshape(8, 1)
        return lax.scatter(x, at, jnp.ones((8, 8)), numbers)

    return hit, miss


@case("integer-scatter", INT)
def _() -> Programs:
    def hit(x):
        return jnp.zeros(8, jnp.int32).at[x].add(1)  # here

    def miss(x):
        counts = jnp.zeros(8).at[x].add(1.0)
        return counts.astype(jnp.int32).at[x].set(1)

    return hit, miss


@case("reduce-precision")
def _() -> Programs:
    def hit(x):
        return lax.reduce_precision(x, 8, 7)  # here

    def miss(x):
        return x.astype(jnp.bfloat16).astype(x.dtype)

    return hit, miss


@case("narrow-shift", SHAPE((8,), jnp.int16), miss_args=(INT,))
def _() -> Programs:
    def hit(x):
        return x >> 1  # here

    def miss(x):
        return x >> 1, lax.shift_right_logical(x.astype(jnp.int16), jnp.int16(1))

    return hit, miss


def _over_mesh(function):
    return jax.shard_map(function, mesh=MESH, in_specs=P("x"), out_specs=P("x"), check_vma=False)


@case("integer-all-reduce", INT)
def _() -> Programs:
    def hit(x):
        return _over_mesh(lambda y: lax.psum(y, "x"))(x)  # here

    def miss(x):
        summed = _over_mesh(lambda y: lax.psum(y.astype(jnp.float32), "x"))(x)
        return summed, _over_mesh(lambda y: lax.all_gather(y, "x"))(x)

    return hit, miss


@case("integer-reduce-scatter", INT)
def _() -> Programs:
    def hit(x):
        return _over_mesh(lambda y: lax.psum_scatter(y, "x", tiled=True))(x)  # here

    def miss(x):
        return _over_mesh(lambda y: lax.psum_scatter(1.0 * y, "x", tiled=True))(x)

    return hit, miss


@case("triangular-solve")
def _() -> Programs:
    def hit(x):
        return jax.scipy.linalg.solve_triangular(x, x)  # here

    def miss(x):
        return jnp.tril(x) * x

    return hit, miss


@case("fft", SHAPE((8,), jnp.complex64))
def _() -> Programs:
    def hit(x):
        return jnp.fft.fft(x)  # here

    def miss(x):
        return x * x

    return hit, miss


@case("sparse")
def _() -> Programs:
    def hit(x):
        return sparse.BCOO.fromdense(x, nse=8).todense()  # here

    def miss(x):
        return jnp.where(x > 0, x, 0)

    return hit, miss


@case("custom-call")
def _() -> Programs:
    def call(target, x):
        return jax.ffi.ffi_call(target, SHAPE(x.shape, x.dtype))(x)  # here

    return lambda x: call("made_up", x), lambda x: call("AwsNeuronSilu", x)


def _twice(x, out):
    out[...] = x[...] * 2


@case("pallas")
def _() -> Programs:
    def hit(x):
        return pl.pallas_call(_twice, out_shape=x)(x)  # here

    def miss(x):
        return pl.pallas_call(_twice, out_shape=x, interpret=True)(x)

    return hit, miss


@case("no-lowering")
def _() -> Programs:
    def hit(x):
        return jnp.linalg.eigh(x)  # here

    def miss(x):
        return jnp.linalg.qr(x), jnp.linalg.svd(x)

    return hit, miss


@case("trn3-operation", BF16)
def _() -> Programs:
    def hit(x):
        return jax_trn3.quantize_dequantize_mx(x, block_size=8)  # here

    def miss(x):
        return lax.composite(lambda y: y * 2, "other.twice")(x)

    return hit, miss


@case("trn3-operation", BF16)
def by_a_setting() -> Programs:
    def product(x):
        return x @ x  # here

    def hit(x):
        with jax_trn3.matmul_precision("mxfp8"):
            return product(x)

    return hit, product
