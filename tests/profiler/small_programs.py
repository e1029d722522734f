"""Programs that the tests of the views look at."""

from jax_trn3.isa import Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.tensor import nc_matmul, nc_matmul_mx
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Program, loop, program


def copies(times: int = 3) -> Program:
    """HBM to SBUF, through an engine and back: small enough to count by hand."""
    source = Tile("source", "hbm", (128, 256), "float32", given=True)
    target = Tile("target", "hbm", (128, 256), "float32")
    here = Tile("here", "sbuf", (128, 256), "float32", slots=2)
    there = Tile("there", "sbuf", (128, 256), "float32", slots=2)

    def body(i):
        return [
            dma_copy(dst=here[i], src=source[:, :], engine="dma:sync"),
            tensor_copy(dst=there[i], src=here[i], engine="vector"),
            dma_copy(dst=target[:, :], src=there[i], engine="dma:scalar"),
        ]

    return program("copies", [loop(times, body)])


def gemm(n: int = 1024, block: int = 512) -> Program:
    """C = A.T @ B of n x n matrices in bfloat16, blocks of `block`, double buffered."""
    depth = block // 128
    a_hbm = Tile("A", "hbm", (n, n), "bfloat16", given=True)
    b_hbm = Tile("B", "hbm", (n, n), "bfloat16", given=True)
    c_hbm = Tile("C", "hbm", (n, n), "bfloat16")
    a = Tile("a", "sbuf", (128, block), "bfloat16", slots=2 * depth)
    b = Tile("b", "sbuf", (128, block), "bfloat16", slots=2 * depth)
    sums = Tile("sums", "psum", (128, block), "float32", slots=4)
    out = Tile("out", "sbuf", (128, block), "bfloat16", slots=2)

    def k_block(k):
        yield dma_copy(dst=a.run(depth * k, depth), src=a_hbm[0:block, 0:block], engine="dma:sync")
        yield dma_copy(
            dst=b.run(depth * k, depth), src=b_hbm[0:block, 0:block], engine="dma:gpsimd"
        )
        for i in range(depth):
            for d in range(depth):
                stationary = a[depth * k + d][:, 128 * i : 128 * i + 128]
                yield nc_matmul(dst=sums[i], stationary=stationary, moving=b[depth * k + d])

    def c_block(_):
        yield loop(n // block, k_block)
        for i in range(depth):
            yield tensor_copy(dst=out[i], src=sums[i], engine="scalar" if i % 2 else "vector")
            yield dma_copy(
                dst=c_hbm[128 * i : 128 * i + 128, 0:block], src=out[i], engine="dma:sync"
            )

    return program(f"gemm of {n}", [loop((n // block) ** 2, c_block)])


def multiply_mx(times: int) -> Program:
    """One MX product again and again."""
    scales = {"dtype": "float8_e8m0fnu", "given": True}
    stationary = Tile("stationary", "sbuf", (128, 128), "float8_e4m3fn_x4", given=True)
    moving = Tile("moving", "sbuf", (128, 512), "float8_e4m3fn_x4", given=True)
    stationary_scale = Tile("stationary_scale", "sbuf", (128, 128), **scales)
    moving_scale = Tile("moving_scale", "sbuf", (128, 512), **scales)
    result = Tile("result", "psum", (128, 512), "float32", slots=2)
    operands = (stationary[:, :], moving[:, :], stationary_scale[:, :], moving_scale[:, :])
    return program("mx", [loop(times, lambda i: [nc_matmul_mx(result[i], *operands)])])
