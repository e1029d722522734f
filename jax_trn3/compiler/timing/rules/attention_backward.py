"""Derivatives of attention as flash kernels: probabilities are computed again, tile by tile.

Backward, for each 128 queries and each 512 keys: scores and the cotangents of the probabilities on
TensorE, exp on ScalarE with the maximum and sum that the forward pass left, their product on
VectorE; gradients of keys and values are summed up in PSUM over all queries, the gradient of
queries in SBUF over all keys (FlashAttention-2's order, keys outside).
"""

import functools
import itertools
from collections.abc import Callable, Iterator

from jax_trn3.hardware import Chip
from jax_trn3.isa import Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.gpsimd import affine_select
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import scalar_tensor_tensor, tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Node, loop, program

from ..group import Group, Plan
from . import rule
from .attention_shape import Shape, computed_in, lacks, of_operation
from .tiles import ROWS, ceil_div, fits, held_as

_STORES = "dma:vector"


@rule("trn3.dot_product_attention_backward")
def attention_backward(group: Group, chip: Chip) -> Plan:
    """Gradients of the operands that `wrt` names."""
    (operation,) = group.operations
    wrt = tuple(str(operation.attributes["wrt"]).split(","))
    return backward(of_operation(operation), chip, operation.kind, wrt)


@rule("trn3.dot_product_attention_tangent")
def attention_tangent(group: Group, chip: Chip) -> Plan:
    """The tangent of the result: as many products of tiles as the gradients take, but that none is
    summed over queries."""
    (operation,) = group.operations
    names = str(operation.attributes["wrt"])
    wrt = tuple(name for name in names.split(",") if name)
    return backward(of_operation(operation), chip, operation.kind, wrt, tangent=True)


def backward(
    shape: Shape, chip: Chip, name: str, wrt: tuple[str, ...], tangent: bool = False
) -> Plan:
    """The plan of the gradients by `wrt`, or of the tangent along them."""
    for deep in (16, 8, 4):
        kernel = _Backward(shape, chip, wrt, tangent, deep)
        body = kernel.program()
        if fits(body, chip):
            break
    score, value = shape.features, shape.value_features
    if tangent:
        features = score + value * ("value" in wrt) + value
        features += score * (("query" in wrt) + ("key" in wrt))
    else:
        features = score + value + value * ("value" in wrt)
        features += score * (("query" in wrt) + ("key" in wrt))
    said = (
        f"derivatives of attention {shape.queries} x {shape.keys}: groups of {shape.rows} queries "
        f"against {kernel.tile} keys at a time, probabilities computed again",
    )
    plan = program(name, body)
    return Plan(plan, kernel.repeat, 2 * shape.products * features, said, lacks(shape, chip))


_FEW = 6
"""Groups of queries up to which a step is a whole block of keys."""

_TURNING = 4
"""Groups that go by while the DMA engines transpose a tile."""


_Step = Callable[[Index, tuple[bool, ...]], Iterator[Node]]


def pipeline(steps: int, behind: int, step: _Step) -> list[Node]:
    """Steps of which parts lag behind: `step` is told for each lag up to `behind` whether there is
    a step so far back."""
    nodes: list[Node] = []
    flags = [
        tuple(0 <= number - lag < steps for lag in range(behind + 1))
        for number in range(steps + behind)
    ]
    number = 0
    for stages, group in itertools.groupby(flags):
        often = len(list(group))
        first = number
        if often > 1:
            nodes.append(loop(often, functools.partial(_later, step, first, stages)))
        else:
            nodes += step(as_index(first), stages)
        number += often
    return nodes


def _later(step: _Step, first: int, stages: tuple[bool, ...], index: Index) -> Iterator[Node]:
    return step(index + first, stages)


class _Backward:
    """The tiles of the kernel, and its stages."""

    def __init__(
        self, shape: Shape, chip: Chip, wrt: tuple[str, ...], tangent: bool, deep: int
    ) -> None:
        self.deep = deep
        self.shape, self.chip, self.wrt, self.tangent = shape, chip, wrt, tangent
        self.dtype = dtype = computed_in(shape, chip)
        held = held_as(shape.dtype, chip.core)
        self.stored = held if held in ("float32", "bfloat16", "float16") else "float32"
        self.most = max(shape.features, shape.value_features)
        # Sums of four tiles of 128 keys, two gradients: four banks of PSUM up to 256 features.
        self.tile = min(shape.tile, 512 if self.most <= 128 else 256 if self.most <= 256 else 128)
        self.parts = ceil_div(self.tile, ROWS)
        self.part = ceil_div(self.tile, self.parts)
        self.tile = self.parts * self.part
        self.depth = ceil_div(self.most, ROWS)
        self.partitions = ceil_div(self.most, self.depth)
        keys = ceil_div(shape.keys, self.tile)
        pairs = ceil_div(shape.visible() * shape.tile, self.tile)
        self.groups = max(1, ceil_div(pairs, keys))
        self.together = next(n for n in (2, 3, 1) if self.groups % n == 0)
        if self.deep < 8:
            self.together = 1
        self.behind = ceil_div(min(_TURNING, self.deep // 2), self.together)
        blocks = shape.heads * keys
        often = next(
            (n for n in range(1, blocks) if blocks % n == 0 and n * self.groups >= 100), blocks
        )
        self.blocks, self.repeat = often, blocks // often
        self._make_tiles(shape.rows, dtype)

    def _make_tiles(self, rows: int, dtype: str) -> None:
        d, depth, wide = self.partitions, self.depth, self.most
        turned, plain = (d, depth, self.tile), (self.part, self.parts, wide)
        self.k_turned, self.v_turned = (
            Tile(f"{n} turned", "sbuf", turned, dtype, min(4, self.deep // 2)) for n in ("k", "v")
        )
        self.k = Tile("k", "sbuf", plain, dtype, min(4, self.deep // 2))
        self.q_turned, self.do_turned = (
            Tile(f"{n} turned", "sbuf", (d, depth, rows), dtype, self.deep) for n in ("q", "d out")
        )
        self.q, self.do = (Tile(n, "sbuf", (rows, wide), dtype, self.deep) for n in ("q", "d out"))
        # Minus the logarithm of the sum of exponentials, and out . d out.
        self.rows = Tile("row statistics", "sbuf", (rows, 2), "float32", self.deep)
        self.scores, self.dp = (
            Tile(n, "psum", (rows, 512), "float32", 2) for n in ("scores", "dp")
        )
        width = 1 << (min(512, wide) - 1).bit_length()
        self.dv, self.dk = (
            Tile(n, "psum", (self.part, self.parts, width), "float32") for n in ("dv", "dk")
        )
        self.dq = Tile("dq", "psum", (rows, width), "float32", 2)
        self.p, self.ds = (
            Tile(n, "sbuf", (rows, 1, self.parts, self.part), dtype, self.deep) for n in ("p", "ds")
        )
        self.ds_turned = Tile(
            "ds turned", "sbuf", (self.part, 1, self.parts, rows), dtype, self.deep
        )
        # Of all groups, up to 64 KiB a partition at most; then keys go by once for every so many.
        held = max(1, min(self.groups, self.deep * 4096 // (4 * wide)))
        self.dq_sum = Tile("dq so far", "sbuf", (rows, held * wide), "float32", given=True)
        self.out = Tile("gradient", "sbuf", plain, self.stored, 4)

    def program(self) -> list[Node]:
        """Blocks of keys one after another, for each all groups of queries that see it; the next
        block's overlap where there are few."""
        if self.groups <= _FEW:
            return pipeline(self.blocks, 1, self._whole_block)

        def block(index: Index) -> Iterator[Node]:
            yield from self._load_keys(index)
            at = index * self.groups

            def step(i: Index, stages: tuple[bool, ...]) -> Iterator[Node]:
                yield from self._step(index, at + i * self.together, stages)

            yield from pipeline(self.groups // self.together, self.behind, step)
            yield from self._finish(index)

        return [loop(self.blocks, block)] if self.blocks > 1 else list(block(as_index(0)))

    def _step(self, block: Index, group: Index, stages: tuple[bool, ...]) -> Iterator[Node]:
        """Probabilities of some groups, while gradients of earlier ones are summed up."""
        if stages[0]:
            yield from self._queries(group)
        for member in range(self.together):
            here = group + member
            if stages[0]:
                yield from self._probabilities(block, here)
            if stages[1]:
                yield from self._for_keys(here - self.together)
            if stages[self.behind]:
                yield from self._for_queries(block, here - self.behind * self.together)

    def _whole_block(self, block: Index, stages: tuple[bool, ...]) -> Iterator[Node]:
        """Probabilities of a block of keys, while gradients of the one before are summed up."""
        if stages[0]:
            yield from self._load_keys(block)
        for member in range(self.groups):
            group = block * self.groups + member
            if stages[0]:
                if member % self.together == 0:
                    yield from self._queries(group)
                yield from self._probabilities(block, group)
            if stages[1]:
                yield from self._for_keys(group - self.groups)
                yield from self._for_queries(block - 1, group - self.groups)
        if stages[1]:
            yield from self._finish(block - 1)

    def _load_keys(self, block: Index) -> Iterator[Instruction]:
        for tile in (self.k_turned, self.v_turned):
            yield from self._turned(tile, block, 1, "dma:gpsimd")
        yield self._loaded(self.k, block, 1, "dma:scalar")

    def _queries(self, group: Index) -> Iterator[Instruction]:
        """What comes in for some groups of queries."""
        count = self.together
        yield from self._turned(self.q_turned, group, count, "dma:gpsimd")
        yield from self._turned(self.do_turned, group, count, "dma:gpsimd")
        yield self._loaded(self.q, group, count, "dma:scalar")
        yield self._loaded(self.do, group, count, "dma:scalar")
        yield self._loaded(self.rows, group, count, "dma:scalar", "float32")

    def _turned(self, tile: Tile, at: Index, count: int, engine: str) -> Iterator[Instruction]:
        d, depth, rows = tile.shape
        counts = (count,) if count > 1 else ()
        source = Tile(
            f"{tile.name} in hbm", "hbm", (rows, *counts, depth, d), self.stored, given=True
        )
        if self.stored == self.dtype:
            yield dma_transpose(tile.run(at, count), source[0], engine=engine)
            return
        raw = Tile(f"{tile.name} as it lies", "sbuf", tile.shape, self.stored, 2 * count)
        yield dma_transpose(raw.run(at, count), source[0], engine=engine)
        yield tensor_copy(tile.run(at, count), raw.run(at, count), engine="gpsimd")

    def _loaded(
        self, tile: Tile, at: Index, count: int, engine: str, dtype: str = ""
    ) -> Instruction:
        outer, features = tile.shape[:-1], tile.shape[-1]
        # Query heads of one head of keys lie side by side.
        beside = count if self.shape.group % count == 0 else 1
        wide = beside * features
        apart = wide * (1 if self.shape.run > self.shape.features else 2)
        shape = (outer[0], count // beside, *outer[1:], apart)
        source = Tile(f"{tile.name} in hbm", "hbm", shape, dtype or self.stored, given=True)
        part = (slice(None),) * (len(shape) - 1) + (slice(0, wide),)
        return dma_copy(tile.run(at, count), source[part], engine=engine)

    def _probabilities(self, block: Index, group: Index) -> Iterator[Instruction]:
        """p = exp(scores - log sum exp), ds = p * (dp - delta)."""
        products = (
            (self.scores, self.q_turned, self.k_turned),
            (self.dp, self.do_turned, self.v_turned),
        )
        for into, left, right in products:
            for part in range(self.depth):
                yield nc_matmul(
                    into[group][:, 0 : self.tile], left[group][:, part], right[block][:, part],
                    accumulate=part > 0,
                )  # fmt: skip
        scores, dp = (t[group][:, 0 : self.tile] for t in (self.scores, self.dp))
        if self.shape.cap:
            yield activation(self.p[group], scores, op="tanh")
        if self.shape.bias or self.shape.mask:
            kind = held_as(self.shape.bias, self.chip.core) if self.shape.bias else "uint8"
            extra = Tile("bias", "sbuf", (self.shape.rows, self.tile), kind, 4)
            far = Tile("bias in hbm", "hbm", (self.shape.rows, 2 * self.tile), kind, given=True)
            yield dma_copy(extra[group], far[:, 0 : self.tile], engine="dma:sync.bias")
            yield tensor_tensor(self.p[group], scores, extra[group], op="add")
        yield activation(self.p[group], scores, self.rows[group][:, 0:1], op="exp", scale=1.0)
        if self.shape.causal or self.shape.window is not None:
            masked = self.p[group]
            # Only a tile on the edge of what is seen needs it.
            share = self.shape.rows / max(1, self.shape.queries)
            if share > 0.25:
                yield affine_select(
                    masked, masked, pattern=[[-1, self.tile]], channel_multiplier=1,
                    on_false_value=0.0, cmp_op="greater_equal",
                )  # fmt: skip
        yield scalar_tensor_tensor(
            self.ds[group],
            dp,
            self.rows[group][:, 1:2],
            self.p[group],
            op0="subtract",
            op1="multiply",
        )
        if "query" in self.wrt or self.tangent:
            yield dma_transpose(self.ds_turned[group], self.ds[group], engine="dma:sync")

    def _for_keys(self, group: Index) -> Iterator[Instruction]:
        """Sums over this group's queries for keys and values."""
        pairs = []
        if "value" in self.wrt:
            pairs.append((self.dv, self.p, self.do))
        if "key" in self.wrt:
            pairs.append((self.dk, self.ds, self.q))
        for into, left, right in pairs:
            for part in range(self.parts):
                for begin in range(0, self.most, 512):
                    end = min(self.most, begin + 512)
                    yield nc_matmul(
                        into[0][:, part, 0 : end - begin],
                        left[group][:, :, part],
                        right[group][:, begin:end],
                    )

    def _for_queries(self, block: Index, group: Index) -> Iterator[Instruction]:
        """Sums over these keys for this group's queries."""
        if "query" in self.wrt or self.tangent:
            for begin in range(0, self.most, 512):
                end = min(self.most, begin + 512)
                dq = self.dq[group][:, 0 : end - begin]
                for part in range(self.parts):
                    yield nc_matmul(
                        dq, self.ds_turned[group][:, :, part], self.k[block][:, part, begin:end],
                        accumulate=part > 0,
                    )  # fmt: skip
                so_far = self.dq_sum[0][:, begin:end]
                yield tensor_tensor(so_far, so_far, dq, op="add")

    def _finish(self, block: Index) -> Iterator[Instruction]:
        """Gradients of the keys and values of a block to HBM, and its share of those of queries."""
        if "query" in self.wrt or self.tangent:
            far = Tile("dq in hbm", "hbm", (self.shape.rows, 2 * self.most), self.stored)
            written = Tile("dq", "sbuf", (self.shape.rows, self.most), self.stored, 2)
            keys = ceil_div(self.shape.keys, self.tile)
            for number in range(ceil_div(self.groups, keys)):
                yield tensor_copy(
                    written[number], self.dq_sum[0][:, 0 : self.most], engine="gpsimd"
                )
                yield dma_copy(far[:, 0 : self.most], written[number], engine=_STORES)
        for number, (name, sums) in enumerate((("value", self.dv), ("key", self.dk))):
            if name not in self.wrt:
                continue
            out = self.out[block * 2 + number]
            width = min(self.most, sums.shape[-1])
            place = out[:, :, 0:width]
            yield activation(place, sums[0][:, :, 0:width], op="copy")
            far = Tile(
                "gradient in hbm", "hbm", (self.part, self.parts, 2 * self.most), self.stored
            )
            yield (
                dma_copy(far[:, :, 0 : self.most], out, engine=_STORES)
                if width == self.most
                else (dma_copy(far[:, :, 0:width], place, engine=_STORES))
            )
