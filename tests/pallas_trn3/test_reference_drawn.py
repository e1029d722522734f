"""Kernels drawn at random: compiled values are the reference executor's, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from pallas_trn3.kernel import kernel_of
from pallas_trn3.reference import run

F32 = jnp.float32

UNARY = {
    "tanh": jnp.tanh,
    "exp": lambda a: jnp.exp(jnp.minimum(a, 4.0)),
    "sin": jnp.sin,
    "log": lambda a: jnp.log(jnp.abs(a) + 0.5),
    "rsqrt": lambda a: lax.rsqrt(jnp.abs(a) + 0.25),
    "logistic": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "square": jnp.square,
    "third": lambda a: a / 3.0,
    "scaled": lambda a: a * 1.7 + 0.3,
    "bfloat16": lambda a: a.astype(jnp.bfloat16).astype(F32),
    "float8": lambda a: a.astype(jnp.float8_e4m3fn).astype(F32),
    "integers": lambda a: jnp.round(jnp.clip(a, -9, 9)).astype(jnp.int32).astype(F32) * 0.1,
    "row sums": lambda a: a - jnp.mean(a, axis=1, keepdims=True),
    "column sums": lambda a: a * (1 + jnp.sum(a, axis=0, keepdims=True)) * 0.1,
    "softmax": lambda a: jax.nn.softmax(a, axis=-1),
    "transposed": lambda a: a.T.reshape(a.shape) + a,
    "running": lambda a: jnp.cumsum(a, axis=1) * 0.25,
    "rolled": lambda a: jnp.concatenate([a[:, 1:], a[:, :1]], axis=1) - a,
}

BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": lambda a, b: a / (jnp.abs(b) + 0.5),
    "max": jnp.maximum,
    "where": lambda a, b: jnp.where(a > b, a * 2, b),
    "product": lambda a, b: jnp.dot(jnp.dot(a, b.T), a) * 0.05,
    "bfloat16 product": lambda a, b: (
        jnp.dot(
            a.astype(jnp.bfloat16), b.T.astype(jnp.bfloat16), preferred_element_type=F32
        ).sum(axis=1, keepdims=True) + b
    ),
    "fused": lambda a, b: a * b + a,
}  # fmt: skip

ENGINES = ("gelu", "exp", "copy", "square")


def store(acc, tile, psum, value, i):
    acc[...] = value


def add(acc, tile, psum, value, i):
    acc[...] += value * 0.5


def store_rows(acc, tile, psum, value, i):
    acc[pl.ds((i % 2) * 4, 4), :] = value[0:4] * 0.3


def read_rows(acc, tile, psum, value, i):
    acc[0:4] = acc[pl.ds((i % 2) * 4, 4), :] + value[4:8]


def looped(acc, tile, psum, value, i):
    def body(k, carry):
        acc[...] = acc[...] * 0.5 + carry
        return carry * 0.7 + k.astype(F32)

    tile[...] = lax.fori_loop(0, i + 1, body, value)


def swept(acc, tile, psum, value, i):
    def body(k, _):
        acc[pl.ds(2 * k, 2)] = value[0:2] * k.astype(F32) + acc[pl.ds(2 * k, 2)]
        return 0

    lax.fori_loop(0, 4, body, 0)


def until(acc, tile, psum, value, i):
    n, found = lax.while_loop(
        lambda c: c[0] < 2 + i, lambda c: (c[0] + 1, jnp.tanh(c[1]) * 1.1 + value), (0, value)
    )
    tile[...] = found + n


def branch(acc, tile, psum, value, i):
    @pl.when(i % 2 == 0)
    def _():
        acc[...] = value * 0.9 + tile[...]

    tile[...] = lax.cond(i > 0, lambda v: v * 1.1, lambda v: jnp.exp(-jnp.abs(v)), value)


def scoped(acc, tile, psum, value, i):
    def scope(more):
        more[...] = value * 3.0
        acc[...] += more[...]

    pl.run_scoped(scope, pltrn.SBUF(acc.shape, F32))


def engine_product(acc, tile, psum, value, i):
    tile[...] = value
    pltrn.nc_matmul(psum, tile, acc, accumulate=False)
    pltrn.nc_matmul(psum, acc, tile, accumulate=i > 0)
    acc[...] = psum[0:8] * 0.1


def scanned(acc, tile, psum, value, i):
    last, rows = lax.scan(lambda c, x: (c * 0.5 + x, c), value[0], value)
    acc[...] = rows * last


STATEMENTS = {
    f.__name__: f
    for f in (
        store,
        add,
        store_rows,
        read_rows,
        looped,
        swept,
        until,
        branch,
        scoped,
        engine_product,
        scanned,
    )
}


def activation(op):
    def statement(acc, tile, psum, value, i):
        tile[...] = value
        pltrn.activation(acc, tile, op=op, scale=0.5)

    return statement


def arithmetic(op):
    def statement(acc, tile, psum, value, i):
        tile[...] = value
        pltrn.tensor_tensor(acc, acc, tile, op=op)
        pltrn.tensor_scalar(acc, acc, op0="multiply", operand0=0.5, op1="add", operand1=0.1)

    return statement


STATEMENTS |= {f"activation {op}": activation(op) for op in ENGINES}
STATEMENTS |= {f"tensor_tensor {op}": arithmetic(op) for op in ("add", "subtract", "multiply")}

steps = st.one_of(
    st.tuples(st.just("unary"), st.sampled_from(sorted(UNARY)), st.integers(0, 9)),
    st.tuples(
        st.just("binary"), st.sampled_from(sorted(BINARY)), st.integers(0, 9), st.integers(0, 9)
    ),
    st.tuples(st.just("statement"), st.sampled_from(sorted(STATEMENTS)), st.integers(0, 9)),
)

programs = st.fixed_dictionaries(
    {
        "grid": st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
        "columns": st.sampled_from([16, 40, 128]),
        "edge": st.booleans(),
        "revisit": st.booleans(),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "steps": st.lists(steps, min_size=2, max_size=7),
    }
)


def call_of(program):
    """A function with the kernel that the program says."""
    grid, columns = program["grid"], program["columns"]
    rows, last = 8, len(grid) - 1
    total = rows * grid[0] - (3 if program["edge"] else 0)
    outer = (lambda *ids: (ids[0], 0)) if program["revisit"] else (lambda *ids: (ids[0], ids[last]))
    wide = columns if program["revisit"] or last == 0 else columns * grid[1]

    def kernel(x_ref, y_ref, o_ref, acc, tile, psum):
        i = pl.program_id(0)

        @pl.when((i == 0) & (pl.program_id(last) == 0))
        def _():
            acc[...] = jnp.zeros_like(acc)
            tile[...] = jnp.ones_like(tile)

        pool = [x_ref[...].astype(F32), y_ref[...]]
        for kind, name, *chosen in program["steps"]:
            values = [pool[k % len(pool)] for k in chosen]
            if kind == "statement":
                STATEMENTS[name](acc, tile, psum, values[0], i)
                pool.append(acc[...] + tile[...])
            else:
                pool.append({**UNARY, **BINARY}[name](*values))
        o_ref[...] = pool[-1] - pool[-2] * 0.5

    def call(x, y):
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[
                pl.BlockSpec((rows, columns), lambda *ids: (ids[0], 0)),
                pl.BlockSpec((rows, columns), lambda *ids: (0, ids[last])),
            ],
            out_specs=pl.BlockSpec((rows, columns), (lambda i: (i, 0)) if last == 0 else outer),
            out_shape=jax.ShapeDtypeStruct((total, wide), F32),
            scratch_shapes=[
                pltrn.SBUF((rows, columns), F32),
                pltrn.SBUF((rows, columns), F32),
                pltrn.PSUM((columns, columns), F32),
            ],
        )(x, y)

    random = np.random.default_rng(0)
    x = random.normal(size=(total, columns)).astype(program["dtype"])
    y = random.normal(size=(rows, columns * grid[last])).astype(np.float32)
    return call, (x, y)


@settings(
    max_examples=15,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(programs)
def test_drawn_kernels_have_the_same_bits(program):
    call, operands = call_of(program)
    (equation,) = jax.make_jaxpr(call)(*operands).eqns
    kernel = kernel_of(**equation.params)
    expected = np.asarray(jax.jit(call)(*operands))
    (found,) = run(kernel, operands)
    different = (found.view(np.uint32) != expected.view(np.uint32)) & ~(
        np.isnan(found) & np.isnan(expected)
    )
    assert not different.any(), f"{different.sum()} elements differ, of {program}"
