"""Programs drawn by hypothesis: transfers, matmuls and copies over rotating tiles, in nested loops."""

from typing import Any

from hypothesis import strategies as st

from jax_trn3.isa import Index, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Program, loop, program

_QUEUES = ("dma:sync", "dma:scalar", "dma:gpsimd")


@st.composite
def programs(draw: st.DrawFn, most_iterations: int = 60, queues: int = 3) -> Program:
    """A program that reads nothing unwritten and fits."""
    source = Tile("source", "hbm", (128, 512), "bfloat16", given=True)
    result = Tile("result", "hbm", (128, 512), "bfloat16", slots=draw(st.integers(1, 3)))
    width = draw(st.sampled_from([128, 256, 512]))
    sbuf = [
        Tile(f"s{k}", "sbuf", (128, width), "bfloat16", slots=draw(st.integers(1, 4)))
        for k in range(draw(st.integers(2, 4)))
    ]
    psum = Tile("p", "psum", (128, width), "float32", slots=draw(st.integers(1, 4)))
    whole = source[:, 0:width]

    def slot(tile: Tile, indices: list[Index]) -> Any:
        where = Index(draw(st.integers(0, 3)))
        for index in indices:
            where = where + index * draw(st.integers(0, 3))
        return tile[where]

    def statement(indices: list[Index], depth: int) -> list[Any]:
        kinds = ["load", "store", "copy", "add", "matmul", "evict", "part"]
        kind = draw(st.sampled_from(kinds + ["loop"] * (2 if depth < 2 else 0)))
        one, other = (slot(draw(st.sampled_from(sbuf)), indices) for _ in range(2))
        queue = draw(st.sampled_from(_QUEUES[:queues]))
        match kind:
            case "load":
                return [dma_copy(one, whole, engine=queue)]
            case "store":
                return [dma_copy(slot(result, indices)[:, 0:width], one, engine=queue)]
            case "copy":
                if draw(st.booleans()):
                    return [activation(one, other, op="copy")]
                return [tensor_copy(one, other, engine=draw(st.sampled_from(["vector", "gpsimd"])))]
            case "part":
                half = width // 2
                return [tensor_copy(one[:, 0:half], other[:, half:width], engine="vector")]
            case "add":
                return [tensor_tensor(one, other, one, op="add", engine="vector")]
            case "matmul":
                return [nc_matmul(slot(psum, indices), one[:, 0:128], other)]
            case "evict":
                if draw(st.booleans()):
                    return [activation(one, slot(psum, indices), op="copy")]
                return [tensor_copy(one, slot(psum, indices))]
            case _:
                count = draw(st.integers(1, most_iterations if depth == 0 else 12))
                return [loop(count, lambda index: block([*indices, index], depth + 1))]

    def block(indices: list[Index], depth: int) -> list[Any]:
        most = 6 if depth else 4
        lines = [statement(indices, depth) for _ in range(draw(st.integers(1, most)))]
        return [node for line in lines for node in line]

    first = [dma_copy(tile[k], whole) for tile in sbuf for k in range(tile.slots)]
    first += [nc_matmul(psum[k], sbuf[0][0][:, 0:128], sbuf[1][0]) for k in range(psum.slots)]
    return program("drawn", [*first, *block([], 0)])
