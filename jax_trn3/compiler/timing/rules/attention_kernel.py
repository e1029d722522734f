"""The flash kernel of attention: blocks of queries against the keys they see.

For each 128 queries and each 512 keys: scores on TensorE; scale and running maximum on VectorE, out
of PSUM; exp and its sum on ScalarE; a transpose by the DMA engines from SBUF to SBUF; the product
with the values on TensorE, 2048 keys summed up in PSUM. Meanwhile the scores of queries two groups
further on are under way. (As nki-library's `attention_cte` does it.)
"""

import itertools
from collections.abc import Iterator

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.gpsimd import affine_select
from jax_trn3.isa.scalar import activation, activation_reduce
from jax_trn3.isa.tensor import nc_matmul, nc_matmul_mx
from jax_trn3.isa.vector import (
    quantize_mx,
    reciprocal,
    scalar_tensor_tensor,
    tensor_scalar,
    tensor_tensor,
)
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.isa.vector_reduce import tensor_reduce, tensor_scalar_reduce
from jax_trn3.simulator import Node, loop

from .attention_shape import Shape, computed_in
from .tiles import ROWS, ceil_div, held_as

_LARGE = 4
"""Tiles whose products are summed up in PSUM."""

_LOADS, _STORES = "dma:gpsimd", "dma:vector"
_TURNS = ("dma:sync", "dma:scalar")


class Flash:
    """The tiles of the kernel, and its stages."""

    def __init__(self, shape: Shape, chip: Chip) -> None:
        self.shape, self.chip = shape, chip
        self.dtype = dtype = computed_in(shape, chip)
        self.stored = held_as(shape.dtype, chip.core)
        if self.stored == "uint32":
            self.stored = "float32"
        rows, tile = shape.rows, shape.tile
        self.parts = ceil_div(tile, ROWS)
        self.part = ceil_div(tile, self.parts)
        self.tile = self.parts * self.part
        self.tiles = ceil_div(shape.length, tile)
        self.depth = ceil_div(shape.features, ROWS)
        self.partitions = ceil_div(shape.features, self.depth)
        self.mx = shape.mx and chip.core.generation >= 4
        visible = shape.visible()
        self.groups = shape.groups
        pairs = max(self.groups, ceil_div(visible, shape.sections))
        low, more = divmod(pairs, self.groups)
        self.counts = [(low, self.groups - more)] * bool(low) + [(low + 1, more)] * bool(more)
        self.most = max(count for count, _ in self.counts)
        self.heads = shape.heads * shape.sections
        # Few groups a head: all of them are one step, and the next head's overlap.
        few = self.groups * self.most <= 12 or self.groups == 1
        self.members = self.groups if few else 1
        self.alone = few
        self.repeat = 1
        if not self.alone:
            often = next(
                (n for n in range(1, self.heads) if self.heads % n == 0 and n * pairs >= 600),
                self.heads,
            )
            self.repeat, self.heads = self.heads // often, often
        self.stride = self.most if not self.alone else sum(n * often for n, often in self.counts)
        self._make_tiles(rows, dtype)

    def _make_tiles(self, rows: int, dtype: str) -> None:
        shape, d, most = self.shape, self.partitions, self.most
        room = self.chip.core.sbuf_usable_partition_bytes
        width = 4 if dtype == "float32" else 2
        features = self.parts * shape.value_features
        once = self.tiles * width * (self.tile * self.depth + features)
        # Of several heads, the next ones' are loaded while these are under way.
        copies = next(n for n in (4, 2, 1) if n * once <= room // 3 or n == 1)
        keys = self.tiles
        self.k = Tile("k", "sbuf", (d, self.depth, self.tile), dtype, keys * copies)
        values = (self.part, self.parts, shape.value_features)
        self.v = Tile("v", "sbuf", values, dtype, keys * copies)
        self.q = Tile("q", "sbuf", (d, self.depth, rows), dtype, 4 * self.members)
        width = min(512, 1 << (min(512, shape.value_features) - 1).bit_length())
        slots = 2 * self.stride
        # As many banks as products leave, in a number that soon comes round.
        banks = next((n for n in (6, 5, 7, 4) if slots % n == 0 and n + width // 128 <= 8), 4)
        self.scores = Tile("scores", "psum", (rows, 512), "float32", banks)
        self.product = Tile("product", "psum", (rows, width), "float32", 4)
        few = next((n for n in (16, 12, 18, 14, 10, 8) if slots % n == 0), slots)
        self.scaled = Tile("scaled", "sbuf", (rows, self.tile), "float32", slots)
        self.exp = Tile("exp", "sbuf", (rows, 1, self.parts, self.part), dtype, few)
        turned = (self.part, 1, self.parts, rows)
        self.turned = Tile("exp turned", "sbuf", turned, dtype, slots)
        if self.mx:
            self._make_mx_tiles(rows, slots)
        self.maxima, self.sums = (
            Tile(name, "sbuf", (rows, most), "float32", 4 * self.members)
            for name in ("maxima", "sums")
        )
        # -maximum and 1 / sum of each group of a step.
        self.statistics = Tile("statistics", "sbuf", (rows, 2 * self.members), "float32", 4)
        out = (rows, shape.value_features)
        self.result = Tile("result", "sbuf", out, "float32", 4 * self.members)
        self.written = Tile("written", "sbuf", out, self.stored, 4 * self.members)

    def _make_mx_tiles(self, rows: int, slots: int) -> None:
        words = ceil_div(ceil_div(self.tile, 4), 32) * 32
        self.words = words
        even = rows + rows % 2
        shape = (max(words, self.part), 4 * even)
        self.fours = Tile("exp by fours", "sbuf", shape, self.dtype, 4, given=True)
        x4 = "float8_e4m3fn_x4"
        self.exp_mx = Tile("exp in MX", "sbuf", (words, even), x4, slots)
        self.exp_scales = Tile("scales of exp", "sbuf", (words, even), "uint8", slots)
        values = (words, self.shape.value_features)
        self.v_mx = Tile("v in MX", "sbuf", values, x4, self.v.slots)
        self.v_scales = Tile("scales of v", "sbuf", values, "uint8", self.v.slots)

    def program(self) -> list[Node]:
        """Heads one after another, each a pipeline of steps; or steps that are whole heads."""
        if self.alone:
            counts = [count for count, often in self.counts for _ in range(often)]
            return self._pipeline(as_index(0), self.heads, counts, alone=True)

        def head(index: Index) -> Iterator[Node]:
            yield from self._load(index * self.tiles)
            at = index * (self.groups + 2)
            for count, often in self.counts:
                yield from self._pipeline(at, often, [count], keys=index * self.tiles)
                at = at + often

        return [loop(self.heads, head)] if self.heads > 1 else list(head(as_index(0)))

    def _pipeline(
        self,
        at: Index,
        steps: int,
        counts: list[int],
        keys: Index | None = None,
        alone: bool = False,
    ) -> list[Node]:
        """Steps in three stages: scores, exponentials of those before, products of those before
        them. A step is a group of queries for each of `counts`, of keys of its own if `alone`."""
        firsts = [0, *itertools.accumulate(counts)]

        def step(index: Index, stages: tuple[bool, bool, bool]) -> Iterator[Node]:
            scored, raised, multiplied = stages
            now = [at + (index - back) for back in range(3)]
            own = [(n * self.tiles if alone or keys is None else keys) for n in now]
            if scored and alone:
                yield from self._load(own[0])
            if scored:
                yield from self._queries(now[0], len(counts))
            for member, count in enumerate(counts):
                groups = [n * len(counts) + member for n in now]
                first = [n * self.stride + firsts[member] for n in now]
                if raised:
                    yield from self._exponents(groups[1], first[1], count, now[1], member)
                for large in range(0, count, _LARGE):
                    tiles = range(large, min(large + _LARGE, count))
                    if multiplied:
                        yield from self._multiply(groups[2], first[2], own[2], tiles)
                    if scored:
                        for tile in tiles:
                            yield from self._score(groups[0], first[0], own[0], tile)
                if multiplied:
                    yield from self._finish(groups[2], count, now[2], member)
            if multiplied:
                yield from self._stored(now[2], len(counts))

        nodes: list[Node] = []
        begin, full = min(2, steps), max(0, steps - 2)
        for number in range(begin):
            nodes += step(as_index(number), (True, number >= 1, False))
        if full > 1:
            nodes.append(loop(full, lambda i: step(i + 2, (True, True, True))))
        elif full:
            nodes += step(as_index(2), (True, True, True))
        nodes += step(as_index(steps), (False, True, steps >= 2))
        nodes += step(as_index(steps + 1), (False, False, True))
        return nodes

    def _load(self, first: Index) -> Iterator[Instruction]:
        """Keys and values of a head, or a section of it, into SBUF."""
        once = max(1, min(4, self.tiles))
        for start in range(0, self.tiles, once):
            count = min(once, self.tiles - start)
            yield from self._load_keys(first + start, count)
            source = _rows_in_hbm(
                "v in hbm", (self.part, count, self.parts), self.shape.value_features,
                self.stored, self.shape,
            )  # fmt: skip
            yield dma_copy(self.v.run(first + start, count), source, engine=_LOADS)
        if self.mx:
            for tile in range(self.tiles):
                place = first + tile
                fresh = Tile(
                    "v by fours", "sbuf", (self.words, 4 * self.shape.value_features), self.dtype,
                    given=True, slots=2,
                )  # fmt: skip
                yield quantize_mx(self.v_mx[place], fresh[place], self.v_scales[place])

    def _load_keys(self, first: Index, count: int) -> Iterator[Instruction]:
        """Transposed on the way: features on partitions."""
        counts = (count,) if count > 1 else ()
        into = self.k.run(first, count)
        kind = self.stored
        if kind != self.dtype:
            raw = Tile("k as it lies", "sbuf", self.k.shape, kind, 4)
            into = raw.run(first, count)
        rows = (self.tile, *counts, self.depth, self.partitions)
        source = Tile(f"k in hbm {count}", "hbm", rows, kind, given=True)
        yield dma_transpose(into, source[0], engine=_TURNS[0])
        if kind != self.dtype:
            yield tensor_copy(self.k.run(first, count), raw.run(first, count), engine="vector")

    def _queries(self, step: Index, members: int) -> Iterator[Instruction]:
        kind, first = self.stored, step * members
        into = self.q.run(first, members)
        if kind != self.dtype:
            raw = Tile("q as it lies", "sbuf", self.q.shape, kind, 2 * self.members)
            into = raw.run(first, members)
        counts = (members,) if members > 1 else ()
        shape = (self.shape.rows, *counts, self.depth, self.partitions)
        source = Tile("q in hbm", "hbm", shape, kind, given=True)
        yield dma_transpose(into, source[0], engine=_LOADS)
        if kind != self.dtype:
            yield tensor_copy(self.q.run(first, members), into, engine="vector")

    def _score(self, group: Index, first: Index, keys: Index, tile: int) -> Iterator[Instruction]:
        """Scores of one tile of keys, and their maximum."""
        at = first + tile
        scores = self.scores[at][:, 0 : self.tile]
        for part in range(self.depth):
            yield nc_matmul(
                scores, self.q[group][:, part], self.k[keys + tile][:, part], accumulate=part > 0
            )
        source = scores
        if self.shape.cap:
            yield activation(self.scaled[at], scores, op="tanh")
            source = self.scaled[at]
        if self.shape.bias or self.shape.mask:
            kind = held_as(self.shape.bias, self.chip.core) if self.shape.bias else "uint8"
            extra = Tile("bias", "sbuf", (self.shape.rows, self.tile), kind, 4)
            far = Tile("bias in hbm", "hbm", (self.shape.rows, 2 * self.tile), kind, given=True)
            yield dma_copy(extra[at], far[:, 0 : self.tile], engine="dma:sync.bias")
            both = bool(self.shape.bias and self.shape.mask)
            for _ in range(1 + both):
                yield tensor_tensor(self.scaled[at], source, extra[at], op="add")
                source = self.scaled[at]
        yield tensor_scalar_reduce(
            self.scaled[at],
            source,
            0.5,
            self.maxima[group][:, tile : tile + 1],
            op0="multiply",
            reduce_op="maximum",
        )

    def _exponents(
        self, group: Index, first: Index, count: int, step: Index, member: int
    ) -> Iterator[Instruction]:
        """exp of the scores less their maximum, and transposed."""
        maximum = self.statistics[step][:, 2 * member : 2 * member + 1]
        if self.shape.causal or self.shape.window is not None:
            masked = self.scaled[first + (count - 1)]
            yield affine_select(
                masked, masked, pattern=[[-1, self.tile]], channel_multiplier=1,
                on_false_value=-3e38, cmp_op="greater_equal",
            )  # fmt: skip
        found = self.maxima[group][:, 0:count]
        yield tensor_reduce(maximum, found, op="maximum", axis=1, negate=True)
        for tile in range(count):
            at = first + tile
            yield activation_reduce(
                self.exp[at],
                self.scaled[at],
                self.sums[group][:, tile : tile + 1],
                maximum,
                op="exp",
                reduce_op="add",
            )
            yield dma_transpose(self.turned[at], self.exp[at], engine=_TURNS[tile % 2])
            if self.mx:
                fours = self.fours[at]
                yield tensor_copy(
                    fours[0 : self.part, 0 : self.parts * self.shape.rows], self.turned[at],
                    engine="gpsimd",
                )  # fmt: skip
                yield quantize_mx(self.exp_mx[at], fours[0 : self.words], self.exp_scales[at])

    def _multiply(
        self, group: Index, first: Index, keys: Index, tiles: range
    ) -> Iterator[Instruction]:
        """Products with the values of one large tile, added to the result."""
        features = self.shape.value_features
        for begin in range(0, features, 512):
            end = min(features, begin + 512)
            into = self.product[first + tiles.start // _LARGE][:, 0 : end - begin]
            for tile in tiles:
                yield from self._weighted(
                    into, first + tile, keys + tile, begin, end, tile == tiles.start
                )
            result = self.result[group][:, begin:end]
            if tiles.start == 0:
                yield tensor_copy(result, into, engine="vector")
            else:
                yield tensor_tensor(result, result, into, op="add")

    def _weighted(
        self, into: Access, at: Index, keys: Index, begin: int, end: int, first: bool
    ) -> Iterator[Instruction]:
        """exp @ v of one tile."""
        if self.mx:
            even = self.exp_mx.shape[1]
            if even == self.shape.rows:
                yield nc_matmul_mx(
                    into, self.exp_mx[at], self.v_mx[keys][:, begin:end], self.exp_scales[at],
                    self.v_scales[keys][:, begin:end], accumulate=not first,
                )  # fmt: skip
                return
        for part in range(self.parts):
            yield nc_matmul(
                into,
                self.turned[at][:, :, part],
                self.v[keys][:, part, begin:end],
                accumulate=part > 0 or not first,
            )

    def _finish(self, group: Index, count: int, step: Index, member: int) -> Iterator[Instruction]:
        """The result over the sum of the exponentials; of a later section with what is there."""
        total = self.statistics[step][:, 2 * member + 1 : 2 * member + 2]
        result, written = self.result[group], self.written[group]
        yield tensor_reduce(total, self.sums[group][:, 0:count], op="add", axis=1)
        yield reciprocal(total, total)
        rows, features = result.shape
        if self.shape.sections > 1:
            before = Tile("out so far", "hbm", (rows, 2 * features), self.stored, given=True)
            yield dma_copy(written, before[:, 0:features], engine=_LOADS)
            yield scalar_tensor_tensor(result, written, total, result, op0="multiply", op1="add")
        yield tensor_scalar(written, result, total, op0="multiply", engine="vector")

    def _stored(self, step: Index, members: int) -> Iterator[Instruction]:
        """Results of a step, and maxima and sums of their rows, to HBM."""
        rows, features = self.written.shape
        wide = features if self.shape.run > self.shape.features else 2 * features
        out = Tile("out", "hbm", (rows, members, wide), self.stored)
        place = self.written.run(step * members, members)
        yield dma_copy(out[:, :, 0:features], place, engine=_STORES)
        far = Tile("row_max, row_sum", "hbm", self.statistics.shape, "float32")
        yield dma_copy(far[0], self.statistics[step], engine=_STORES)


def _rows_in_hbm(
    name: str, outer: tuple[int, ...], features: int, dtype: str, shape: Shape
) -> Access:
    """Rows of a head in HBM: next to each other if there is one head, else apart."""
    wide = features if shape.run > shape.features else 2 * features
    tile = Tile(f"{name} {outer[1]}", "hbm", (*outer, wide), dtype, given=True)
    return tile[(slice(None),) * len(outer) + (slice(0, features),)]
