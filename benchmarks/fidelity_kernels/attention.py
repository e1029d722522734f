"""Attention for context encoding: nki-library's `attention_cte`.

For each 128 queries and each 512 keys: scores on TensorE; scale and maximum on VectorE, out of
PSUM; exp and its sum on ScalarE, into bfloat16; a transpose by the DMA engines from SBUF to SBUF;
the product with the values on TensorE. Sums of 2048 keys are added up on VectorE. Meanwhile the
scores of a group of queries two further on are under way.

Published: performance figures of its integration tests, in a unit that is inferred (580e6 of
`tpbSgCyclesSum` as 580 us). Assumed: one core; transposes issued by SyncE and ScalarE by turns,
loads by GpSimdE, stores by VectorE. Left out: the causal mask of the tiles on the diagonal.
"""

import itertools

from jax_trn3.hardware import TRAINIUM2
from jax_trn3.isa import Instruction, Tile
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.scalar import activation_reduce
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_scalar,
    tensor_tensor,
)
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.isa.vector_reduce import tensor_reduce, tensor_scalar_reduce
from jax_trn3.simulator import Program, program

from .row import Row, total_us

_QUERIES = 128  # in a group
_KEYS = 512  # in a tile
_LARGE = 4  # tiles whose products are summed up in PSUM
_SECTION = 8192  # keys that are treated at once where there are more than 10 * 1024
_GROUPS = 4  # whose queries are loaded at once
_LOADS, _STORES = "dma:gpsimd", "dma:vector"
_SOURCE = "nki-library, test/integration/nkilib/core/attention/test_attention_cte.py"


class _Section:
    """All queries against some tiles of keys."""

    def __init__(self, tiles: int, features: int, dtype: str, later: bool) -> None:
        """`later`: whether results of a section before are added to."""
        self.d, self.later = features, later
        self.hbm = Tile("q, k, v", "hbm", (1024, 1024), dtype, given=True)
        self.out = Tile("out", "hbm", (_QUERIES, features), dtype, slots=8)
        self.before = Tile("out so far", "hbm", (_QUERIES, features), dtype, given=True)
        self.k = Tile("k", "sbuf", (features, _KEYS), "bfloat16", slots=tiles)
        self.v = Tile("v", "sbuf", (128, features), "bfloat16", slots=4 * tiles)
        self.q = Tile("q", "sbuf", (features, _GROUPS * _QUERIES), "bfloat16", slots=3)
        self.scores = Tile("scores", "psum", (_QUERIES, _KEYS), "float32", slots=6)
        self.product = Tile("product", "psum", (_QUERIES, features), "float32", slots=4)
        self.scaled = Tile("scaled", "sbuf", (_QUERIES, _KEYS), "float32", slots=2 * tiles)
        self.exp = Tile("exp", "sbuf", (_QUERIES, 1, 4, 128), "bfloat16", slots=8)
        self.turned = Tile("exp turned", "sbuf", (128, 1, 4, 128), "bfloat16", slots=2 * tiles)
        names = ("maxima", "sums")
        self.maxima, self.sums = (
            Tile(name, "sbuf", (_QUERIES, tiles), "float32", slots=3) for name in names
        )
        names = ("-maximum", "sum")
        self.maximum, self.total = (
            Tile(name, "sbuf", (_QUERIES, 1), "float32", slots=3) for name in names
        )
        self.result = Tile("result", "sbuf", (_QUERIES, features), "float32", slots=3)
        self.written = Tile("written", "sbuf", (_QUERIES, features), dtype, slots=3)

    def load(self) -> list[Instruction]:
        """Keys and values into SBUF."""
        keys, values = self.hbm[0 : self.d, 0:_KEYS], self.hbm[0:128, 0 : self.d]
        return [
            *(dma_copy(self.k[i], keys, engine=_LOADS) for i in range(self.k.slots)),
            *(dma_copy(self.v[i], values, engine=_LOADS) for i in range(self.v.slots)),
        ]

    def start(self, group: int) -> list[Instruction]:
        """Loads the queries of the groups from this one on, if it is the first of four."""
        if group % _GROUPS:
            return []
        queries = self.hbm[0 : self.d, 0 : _GROUPS * _QUERIES]
        return [dma_copy(self.q[group // _GROUPS], queries, engine=_LOADS)]

    def score(self, group: int, at: int, tile: int) -> list[Instruction]:
        """Scores of one tile of keys, and their maximum. `at` counts all tiles so far."""
        place = group % _GROUPS * _QUERIES
        queries = self.q[group // _GROUPS][:, place : place + _QUERIES]
        return [
            nc_matmul(self.scores[at], queries, self.k[tile], accumulate=False),
            tensor_scalar_reduce(
                self.scaled[at],
                self.scores[at],
                0.5,
                self.maxima[group][:, tile : tile + 1],
                op0="multiply",
                reduce_op="maximum",
            ),
        ]

    def exponents(self, group: int, first: int, tiles: int) -> list[Instruction]:
        """exp of the scores less their maximum, and transposed."""
        found = self.maxima[group][:, 0:tiles]
        nodes = [tensor_reduce(self.maximum[group], found, op="maximum", axis=1, negate=True)]
        for tile in range(tiles):
            at = first + tile
            nodes += [
                activation_reduce(
                    self.exp[at],
                    self.scaled[at],
                    self.sums[group][:, tile : tile + 1],
                    self.maximum[group],
                    op="exp",
                    reduce_op="add",
                ),
                dma_transpose(
                    self.turned[at], self.exp[at], engine=("dma:sync", "dma:scalar")[tile % 2]
                ),
            ]
        return nodes

    def multiply(self, group: int, first: int, tiles: range) -> list[Instruction]:
        """Products with the values of one large tile, added to the result."""
        into = self.product[first // _LARGE + tiles.start // _LARGE]
        blocks = [(tile, block) for tile in tiles for block in range(4)]
        nodes = [
            nc_matmul(
                into,
                self.turned[first + tile][:, :, block],
                self.v[4 * tile + block],
                accumulate=number > 0,
            )
            for number, (tile, block) in enumerate(blocks)
        ]
        result = self.result[group]
        if tiles.start == 0:
            return [*nodes, tensor_copy(result, into, engine="vector")]
        return [*nodes, tensor_tensor(result, result, into, op="add")]

    def finish(self, group: int, tiles: int) -> list[Instruction]:
        """The result over the sum of the exponentials; of a later section with what is there."""
        total, result = self.total[group], self.result[group]
        nodes = [
            tensor_reduce(total, self.sums[group][:, 0:tiles], op="add", axis=1),
            reciprocal(total, total),
        ]
        if self.later:
            old = self.written[group]
            nodes += [
                dma_copy(old, self.before[0], engine=_LOADS),
                scalar_tensor_tensor(result, old, total, result, op0="multiply", op1="add"),
            ]
        return [
            *nodes,
            tensor_scalar(self.written[group], result, total, op0="multiply"),
            dma_copy(self.out[group], self.written[group], engine=_STORES),
        ]

    def attend(self, counts: list[int]) -> list[Instruction]:
        """Groups of queries against the first `counts[group]` tiles of keys: exponentials of a
        group while the scores of the next one and the products of the last one are computed."""
        firsts = [0, *itertools.accumulate(counts)]
        nodes = [*self.load(), *self.start(0), *self.start(1)]
        for step in range(len(counts) + 2):
            scored, exponent, product = step, step - 1, step - 2
            if 0 <= exponent < len(counts):
                nodes += self.exponents(exponent, firsts[exponent], counts[exponent])
            if scored + 2 < len(counts):
                nodes += self.start(scored + 2)
            for large in range(0, max(counts), _LARGE):
                if product >= 0 and large < counts[product]:
                    tiles = range(large, min(large + _LARGE, counts[product]))
                    nodes += self.multiply(product, firsts[product], tiles)
                if scored < len(counts):
                    for tile in range(large, min(large + _LARGE, counts[scored])):
                        nodes += self.score(scored, firsts[scored] + tile, tile)
            if product >= 0:
                nodes += self.finish(product, counts[product])
        return nodes


def attention(queries: int, keys: int, features: int, dtype: str, causal: bool = False) -> Program:
    """softmax(scale * q @ k.T) @ v of one head; all arithmetic as for float32 scores."""
    length = _SECTION if keys > 10 * 1024 else keys
    nodes: list[Instruction] = []
    for start in range(0, keys, length):
        tiles = min(length, keys - start) // _KEYS
        ends = range(_QUERIES, queries + 1, _QUERIES)
        counts = [min(tiles, -(-(end - start) // _KEYS)) if causal else tiles for end in ends]
        section = _Section(tiles, features, dtype, start > 0)
        nodes += section.attend([count for count in counts if count > 0])
    return program(f"attention {queries} x {keys} x {features} {dtype}", nodes)


ROWS = (
    Row(
        "C12 a",
        "attention, 4096 q, 9216 kv, d 64 fp32",
        TRAINIUM2,
        lambda: attention(4096, 9216, 64, "float32"),
        (total_us(580),),
        _SOURCE,
    ),
    Row(
        "C12 b",
        "attention, 9216 q, 9216 kv, d 64 bf16",
        TRAINIUM2,
        lambda: attention(9216, 9216, 64, "bfloat16"),
        (total_us(1_250),),
        _SOURCE,
    ),
    Row(
        "C12 c",
        "attention, causal, 16384^2, d 128 fp16",
        TRAINIUM2,
        lambda: attention(16384, 16384, 128, "float16", causal=True),
        (total_us(2_030),),
        _SOURCE,
        slow=True,
    ),
)

ASIDE = (
    Row(
        "A10",
        "attention, 9216 q, 4096 kv, d 64 fp32",
        TRAINIUM2,
        lambda: attention(9216, 4096, 64, "float32"),
        (total_us(567),),
        _SOURCE,
    ),
)
