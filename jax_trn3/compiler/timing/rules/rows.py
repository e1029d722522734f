"""Rows that go by in tiles of [128, n]: elementwise operations, and reductions along them.

Loads on two queues, stores on a third. Steps are put into stages where the engine changes; up to
four tiles are in work at a time, each in its own stage (software pipelining). What is the same for
every row is in SBUF before the first. Sums over rows go on in PSUM (a product with ones) or in an
accumulator, and are put together at the end; what little is computed of them comes after that.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.gpsimd import iota, tensor_partition_reduce
from jax_trn3.isa.sync import nop
from jax_trn3.isa.tensor import nc_matmul, nc_transpose
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.isa.vector_move import memset, tensor_copy
from jax_trn3.isa.vector_reduce import tensor_reduce
from jax_trn3.simulator import Node, Program, loop, program

from ..group import Group, Plan
from . import rule
from .layout import PARTITIONS, Layout, layout, row_alone
from .row_values import Reading
from .row_work import reading
from .steps import Engines, Operand, Step, Value, candidates, joined, selection

_LOADS = ("dma:sync", "dma:scalar")
_STORE = "dma:gpsimd"
_STAGES = 4
"""Tiles in work at the same time, at most: while one engine has one, another has the next."""

_FAR = 8
"""Slots of results in HBM: enough that none waits for another."""

_BANK = 512
"""Columns of a product with ones: a PSUM bank."""


@rule("rows")
def rows(group: Group, chip: Chip) -> Plan:
    """Elementwise operations and reductions along rows."""
    if _in_registers(group):
        steps = [nop(engine="sync") for _ in group.operations]
        return Plan(program("registers", steps), assumptions=(_REGISTERS,))
    work = reading(group, chip.core)
    work.work.steps = joined(work.work, work.kept, chip.core, row_alone(work.lengths))
    rows, passes = _pipelined(chip, work)
    assumptions = work.assumptions
    if work.elements % (rows.layout.rows * rows.layout.split):
        assumptions += ("rows that lie over several partitions are padded to equal parts",)
    if passes > 1:
        assumptions += ("rows that SBUF cannot hold go by more than once",)
    return Plan(rows.program(), passes, work.flops, assumptions, work.lacks)


_REGISTERS = "integers that are no arrays (loop counters, places of slices) are kept in registers"


def _in_registers(group: Group) -> bool:
    """Whether a group computes places and counts only, which sequencers do."""
    tensors = [t for op in group.operations for t in (*op.operands, *op.results)]
    return all(t.size <= 1 and t.dtype.lstrip("usi").isdigit() for t in tensors)


def _pipelined(chip: Chip, work: Reading) -> tuple["_Rows", int]:
    """(the maker of the program, how often all has to go by): as many stages as leave room for
    tiles that transfers like."""
    most, passes = _most_elements(work, chip)
    rows = _Rows(chip, work, layout(work.elements, work.lengths, most))
    engines, longest = rows.engine_of_steps(), max(work.lengths)
    for stages in range(_STAGES, 1, -1):
        work.put_in_stages(engines, stages)
        fewer, again = _most_elements(work, chip)
        whole = fewer >= longest or longest % 128 == 0 or longest > most
        if again <= passes and whole and fewer >= min(_LIKED, most):
            most = fewer
            break
    else:
        work.put_in_stages(engines, 1)
    best = layout(work.elements, work.lengths, most)
    return _Rows(chip, work, best, chosen=rows.chosen), passes


_LIKED = 1024
"""Elements of a partition that make a transfer efficient."""


def _most_elements(work: Reading, chip: Chip) -> tuple[int, int]:
    """(elements of a partition in one tile that SBUF holds, how often all has to go by)."""
    room = int(chip.core.sbuf_usable_partition_bytes * 0.9)
    most = max(16, room // max(1, work.bytes_of_an_element()))
    longest = max(work.lengths, default=1)
    if most * PARTITIONS >= longest:
        return most, 1
    return -(-longest // PARTITIONS), -(-longest // (PARTITIONS * most))


@dataclass
class _Rows:
    """The program of a group."""

    chip: Chip
    work: Reading
    layout: Layout
    tiles: dict[int, Tile] = field(default_factory=dict)
    engines: Engines = field(init=False)
    scratch: dict[str, Tile] = field(default_factory=dict)
    chosen: dict[tuple[int, int], str] = field(default_factory=dict)
    """Engine of each instruction of a step: the same for every tile."""

    def __post_init__(self) -> None:
        self.engines = Engines(self.chip)
        self._allocate()

    def program(self) -> Program:
        """All of it."""
        full, edges = self.layout.parts()
        stages = self.work.num_stages
        size = PARTITIONS, self.layout.per
        nodes: list[Node] = [*self._before()]
        filled = min(stages - 1, full)
        for g in range(filled):
            nodes += self._round([(as_index(g - s), s, *size) for s in range(g + 1)])
        if full >= stages:
            last = stages - 1

            def steady(g: Index) -> list[Node]:
                return self._round([(g + (last - s), s, *size) for s in range(stages)])

            nodes.append(loop(full - last, steady))
        for g in range(full, full + stages - 1):
            left = [s for s in range(g - full + 1, stages) if 0 <= g - s < full]
            nodes += self._round([(as_index(g - s), s, *size) for s in left])
        for n, (partitions, rows) in enumerate(edges):
            for s in range(stages):
                nodes += self._round([(as_index(full + n), s, partitions, rows)])
        nodes += self._after()
        return program(self.work.name, nodes)

    def _round(self, tiles: list[tuple[Index, int, int, int]]) -> list[Node]:
        """A stage of each of some tiles, a step of each in turn, the oldest first."""
        nodes: list[Node] = []
        bodies: list[list[list[Node]]] = []
        stored: list[Node] = []
        for i, stage, partitions, rows in reversed(tiles):
            if stage == 0:
                nodes += self._loads(i, partitions, rows)
            steps = [
                [*self._step(number, step, i, partitions, rows)]
                for number, step in enumerate(self.work.work.steps)
                if self.work.stages[number] == stage
            ]
            bodies.append(steps)
            if stage == self.work.num_stages - 1:
                stored += self._stores(i, partitions, rows)
        body = [n for steps in itertools.zip_longest(*bodies) for step in steps for n in step or ()]
        if self.work.passes > 1 and body:
            nodes.append(loop(self.work.passes, lambda _: body))
        else:
            nodes += body
        return [*nodes, *stored]

    def engine_of_steps(self) -> list[str]:
        """The engine of each step, from one tile alone."""
        found = []
        for number, step in enumerate(self.work.work.steps):
            made = [*self._step(number, step, as_index(0), PARTITIONS, self.layout.per)]
            last = made[-1] if made else None
            found.append(last.engine if isinstance(last, Instruction) else "tensor")
        return found

    # Tiles.

    def _allocate(self) -> None:
        """A tile for each value; those that live within a stage share tiles."""
        free: dict[tuple[str, int, int], list[Tile]] = {}
        last = self.work.last_steps()
        for value in self.work.work.values.values():
            if value.source in ("hbm", "column", "scalar"):
                self.tiles[value.number] = self._new(value, len(self.tiles))
        for place, step in enumerate(self.work.work.steps):
            for number in (step.writes, step.sums):
                if number is None or number in self.tiles:
                    continue
                value = self.work.work.values[number]
                if value.source == "late":
                    continue
                found = self.work.passing(number) and free.get(self._key(value, place))
                self.tiles[number] = found.pop() if found else self._new(value, len(self.tiles))
            for number in last.get(place, ()):
                value = self.work.work.values[number]
                if number in self.tiles and self.work.passing(number):
                    free.setdefault(self._key(value, place), []).append(self.tiles[number])

    def _key(self, value: Value, place: int) -> tuple[str, int, int]:
        kind = 0 if value.number in self.work.wide else value.every
        return self.work.dtype(value), kind, self.work.stages[place]

    def _new(self, value: Value, number: int) -> Tile:
        dtype, slots = self.work.dtype(value), self.work.slots(value)
        if value.source == "scalar":
            return Tile(f"number {number}", "sbuf", (PARTITIONS, 1), dtype, given=True)
        wide = value.number in self.work.wide or value.source == "column"
        shape = self.layout.dimensions(1 if wide else value.every)
        # A row over several partitions: what there is one of for each comes to one of them.
        given = wide or (self.layout.split > 1 and value.every > 1)
        return Tile(f"value {number}", "sbuf", shape, dtype, slots, given=given)

    def _access(self, value: Value, i: Index, partitions: int, rows: int, all_of: bool) -> Access:
        """A value's part of tile `i`; `all_of`: as often as an operand of whole rows needs it."""
        tile = self.tiles[value.number]
        slot = tile[0 if value.source in ("column", "scalar") else i]
        if value.source == "scalar":
            return slot[0:partitions]
        part = slot[0:partitions, 0:rows]
        own = len(self.layout.dimensions(value.every))
        if all_of or len(tile.shape) == own:
            return part
        ends = [slice(None)] * own + [slice(0, 1)] * (len(tile.shape) - own)
        return part[tuple(ends)]

    # One tile after another.

    def _far(self, value: Value, name: str, given: bool) -> Tile:
        """A value in HBM, a tile after another."""
        shape = self.layout.dimensions(value.every)
        if value.every > 1 and self.layout.split > 1 and value.every == self.layout.lengths[-1]:
            shape = (max(1, PARTITIONS // self.layout.split), 1)
        dtype = self.work.far_dtype(value)
        return Tile(
            f"{name} {value.number}", "hbm", shape, dtype, 1 if given else _FAR, given=given
        )

    def _near_and_far(
        self, value: Value, i: Index, partitions: int, rows: int, given: bool
    ) -> tuple[Access, Access]:
        far = self._far(value, "in" if given else "out", given)
        near = self._access(value, i, partitions, rows, False)
        if value.every > 1 and self.layout.split > 1 and value.every == self.layout.lengths[-1]:
            count = max(1, partitions // self.layout.split)
            return near[0:count], far[0 if given else i][0:count]
        slot = far[0 if given else i][0:partitions, 0:rows]
        return near, slot

    def _loads(self, i: Index, partitions: int, rows: int) -> Iterator[Instruction]:
        number = 0
        for value in self.work.work.values.values():
            if value.source != "hbm":
                continue
            queue = _LOADS[number % len(_LOADS)]
            number += 1
            near, far = self._near_and_far(value, i, partitions, rows, True)
            yield from self._moved(near, far, value, queue, True)
        for share in self.work.shares:
            # A part of what is repeated: all tiles together load it once.
            width = max(1, int(self.layout.width * share.part))
            dtype = self.tiles[share.number].dtype
            flat = Tile(f"part of {share.number}", "hbm", (PARTITIONS, width), dtype, given=True)
            target = self._spread(dtype, width)
            yield dma_copy(target[i][0:partitions], flat[0:partitions], engine=_LOADS[0])

    def _moved(
        self, near: Access, far: Access, value: Value, queue: str, load: bool
    ) -> Iterator[Instruction]:
        # Of a value of several words, as many transfers of a word each.
        for _ in range(self.work.words_of(value)):
            yield dma_copy(*((near, far) if load else (far, near)), engine=queue)

    def _spread(self, dtype: str, width: int) -> Tile:
        return Tile(f"parts of {width}", "sbuf", (PARTITIONS, width), dtype, 4)

    def _stores(self, i: Index, partitions: int, rows: int) -> Iterator[Instruction]:
        for number in self.work.kept:
            value = self.work.work.values[number]
            if value.source == "late":
                continue
            near, far = self._near_and_far(value, i, partitions, rows, False)
            if near.elements != far.elements and value.source == "scalar":
                continue
            yield from self._moved(near, far, value, _STORE, False)

    def _step(
        self, number: int, step: Step, i: Index, partitions: int, rows: int
    ) -> Iterator[Node]:
        values = self.work.work.values
        into = values[step.writes]
        if into.source == "late":
            yield from self._gathered(step, i, partitions, rows)
            return
        dst = self._access(into, i, partitions, rows, False)

        def at(operand: Operand) -> Access | float:
            if isinstance(operand, float):
                return operand
            value = values[operand]
            if value.source == "scalar":
                return self._filled(dst)
            smaller = value.every > into.every
            return self._access(value, i, partitions, rows, smaller)

        def row(operand: Operand) -> Access | float | None:
            if isinstance(operand, float):
                return operand
            value = values[operand]
            if value.source == "scalar":
                return self._access(value, i, partitions, rows, False)
            one = value.every == self.layout.lengths[-1] and rows == 1 and value.every > into.every
            if not one or self.tiles[operand].dtype != "float32":
                return None
            return self._access(value, i, partitions, rows, False)

        total = sums = None
        if step.sums is not None:
            total = self._access(values[step.sums], i, partitions, rows, False)
            sums = total if total.free_size == 1 else None
        if step.op == "select":
            yield from self._selected(number, step, dst, at)
            return
        found = candidates(step, dst, at, row, sums, self.chip.core)
        yield from self._chosen(number, 0, found)
        if total is not None and sums is None:  # a sum each of several rows: by VectorE
            yield _added_up(total, dst)
        if (
            step.op.startswith("reduce ")
            and self.layout.split > 1
            and into.every >= self.layout.lengths[-1]
        ):
            yield from self._across(step, dst, i)

    def _chosen(self, number: int, part: int, found: list[Instruction]) -> Iterator[Instruction]:
        """The instruction on the engine that was chosen for the first tile."""
        key = number, part
        if key not in self.chosen:
            best = self.engines.best(found)
            self.chosen[key] = f"{best.name} {best.engine}"
        yield next((n for n in found if f"{n.name} {n.engine}" == self.chosen[key]), found[0])

    def _selected(self, number: int, step: Step, dst: Access, at: object) -> Iterator[Instruction]:
        place = at if callable(at) else None
        assert place is not None
        predicate, true, false = (place(read) for read in step.reads)
        if not isinstance(predicate, Access) or predicate.dtype not in (
            "uint8",
            "uint16",
            "uint32",
        ):
            predicate = self._filled(dst, "uint8")
        for part, found in enumerate(selection(dst, predicate, true, false, self.chip.core)):
            yield from self._chosen(number, part, found)

    def _filled(self, like: Access, dtype: str = "") -> Access:
        """A number as often as an operand needs it: a tile that holds it from the start."""
        dtype = dtype or like.dtype
        key = f"{dtype} {like.tile.shape}"
        if key not in self.scratch:
            shape = like.tile.shape
            self.scratch[key] = Tile(f"numbers {key}", "sbuf", shape, dtype, given=True)
        part = tuple(slice(a, a + n) for a, n in zip(like.start, like.size))
        return self.scratch[key][part]

    def _across(self, step: Step, dst: Access, i: Index) -> Iterator[Instruction]:
        """A reduction of a row that lies over several partitions: sums by a product with ones where
        two share a row; others in one partition, and by a product with one back to all."""
        split, partitions = self.layout.split, dst.partitions
        kind = dst.dtype if dst.dtype in FP16_AND_32 else "float32"
        flat = dst if kind == dst.dtype else self._filled(dst, kind)
        psum = Tile("rows together", "psum", (PARTITIONS, 1), "float32", 2)
        back = tensor_copy(dst, psum[i][0:partitions])
        if step.op.endswith("add"):
            name = f"which partitions share a row, {kind}"
            shared = Tile(name, "sbuf", (PARTITIONS, PARTITIONS), kind, given=True)
            yield nc_matmul(
                psum[i][0:partitions], shared[0:partitions, 0:partitions], flat, accumulate=False
            )
            yield back
            return
        rows = PARTITIONS // split
        some = slice(0, max(1, partitions // split))
        line = Tile(f"in a line, {kind}", "psum", (1, rows, split), kind, 2)
        short = Tile(f"one of a row, {kind}", "sbuf", (1, rows), kind, 2)
        again = Tile(f"one of a partition, {kind}", "sbuf", (1, rows, split), kind, 2, given=True)
        one = Tile(f"one, {kind}", "sbuf", (1, 1), kind, given=True)
        op = step.op.partition(" ")[2]
        yield nc_transpose(line[i][:, some], flat, engine="tensor")
        yield tensor_reduce(short[i][:, some], line[i][:, some], op=op, axis=2)
        yield tensor_copy(again[i][:, some, 0:1], short[i][:, some])
        yield nc_matmul(psum[i][0:partitions], again[i][:, some], one, accumulate=False)
        yield back

    # What is known only at the end.

    def _gathered(self, step: Step, i: Index, partitions: int, rows: int) -> Iterator[Node]:
        """Adds a tile to a reduction over rows."""
        (source,) = (r for r in step.reads[:1] if isinstance(r, int))
        data = self._access(self.work.work.values[source], i, partitions, rows, False)
        op = step.op.partition(" ")[2]
        if _on_tensor(step, data):
            yield from self._added_by_ones(data, partitions)
            return
        acc = self._accumulator(step, data)
        part = acc[tuple(slice(0, n) for n in data.size)]
        kind = op if op in ("add", "multiply", "minimum") else "maximum"
        found = [tensor_tensor(part, part, data, op=kind, engine="vector")]
        if kind == "add":
            found.append(tensor_tensor(part, part, data, op=kind, engine="gpsimd"))
        yield from self._chosen(id(step), 0, found)

    def _added_by_ones(self, data: Access, partitions: int) -> Iterator[Node]:
        """Sums over the partitions, 128 columns at a time, each becoming a partition of PSUM."""
        moving = Tile(f"ones {data.dtype}", "sbuf", (PARTITIONS, 1), data.dtype, given=True)
        sums = self._sums()
        source = self._columns(data, PARTITIONS)
        width = source.free_size

        def one(_: Index) -> list[Node]:
            return [
                nc_matmul(
                    sums[0][0:width], source, moving[0:partitions], accumulate=True,
                    is_moving_onezero=data.dtype == "float32",
                )
            ]  # fmt: skip

        count = -(-data.free_size // width)
        yield from one(as_index(0)) * count if count <= 8 else [loop(count, one)]

    def _columns(self, data: Access, width: int) -> Access:
        """Elements of a partition that stand one after the other."""
        sizes = list(data.size[1:])
        keys: list[slice] = []
        for axis in range(len(sizes)):
            inner = math.prod(sizes[axis + 1 :])
            count = max(1, width // inner)
            keys.append(slice(0, min(count, sizes[axis])))
            width = min(width, inner) if count == 1 else width
        return data[(slice(None), *keys)]

    def _sums(self) -> Tile:
        return Tile("sums of columns", "psum", (PARTITIONS, 1), "float32", 2, given=True)

    def _accumulator(self, step: Step, data: Access) -> Tile:
        return Tile(f"gathered {step.writes}", "sbuf", data.tile.shape, "float32", given=True)

    def _before(self) -> Iterator[Node]:
        """What is the same for every row."""
        for value in self.work.work.values.values():
            if value.source not in ("column", "scalar"):
                continue
            tile = self.tiles[value.number]
            made = self.work.made.get(value.number)
            if made == "iota":
                yield iota(tile, pattern=[[1, math.prod(tile.shape[1:])]])
            elif made is not None:
                yield memset(tile, value=0)
            elif value.number not in self.work.shared:
                yield from self._broadcast(value, tile)

    def _broadcast(self, value: Value, tile: Tile) -> Iterator[Node]:
        """Loads a row, and copies it to all partitions by products with ones."""
        size = self.work.sizes[value.number]
        dtype = self.work.far_dtype(value)
        width = min(size, math.prod(tile.shape[1:]), 16_384)
        lines, columns = max(1, size // width), width
        far = Tile(f"line {value.number}", "hbm", (1, columns), dtype, given=True)
        near = Tile(f"line {value.number} in sbuf", "sbuf", (1, columns), dtype, given=True)
        yield loop(lines, lambda _: [dma_copy(near, far, engine=_LOADS[1])])
        if size % width:
            rest = size % width
            yield dma_copy(near[:, 0:rest], far[:, 0:rest], engine=_LOADS[1])
        kind = dtype if dtype in ("bfloat16", "float16", "float32") else "bfloat16"
        moving = Tile(
            f"line {value.number} moving", "sbuf", (1, min(columns, _BANK)), kind, given=True
        )
        ones = Tile(f"one line of {kind}", "sbuf", (1, PARTITIONS), kind, given=True)
        psum = Tile("line everywhere", "psum", (PARTITIONS, _BANK), "float32", 2)
        part = min(columns, _BANK)
        first = [slice(0, 1)] * (len(tile.shape) - 2)
        dst = tile[(slice(None), *first, slice(0, min(part, tile.shape[-1])))]

        def piece(i: Index) -> list[Node]:
            return [
                nc_matmul(psum[i][:, 0:part], ones, moving[:, 0:part], accumulate=False),
                tensor_copy(dst, psum[i][:, 0 : dst.free_size], engine="vector"),
            ]

        # The line itself is what the products read.
        yield tensor_copy(moving, near[:, 0 : moving.shape[1]], engine="vector")
        yield loop(max(1, columns // _BANK), piece)

    def _after(self) -> Iterator[Node]:
        """Puts together what was gathered over rows, and computes what depends on it: a partition a
        column, up to 512 at a time."""
        steps = [
            s for s in self.work.work.steps if self.work.work.values[s.writes].source == "late"
        ]
        if not steps and not self.work.tail:
            return
        size = self.work.late_size
        height, width = min(PARTITIONS, size), min(_BANK, -(-size // PARTITIONS))
        count = max(1, -(-size // (height * width)))
        line = Tile("at the end", "sbuf", (height, width), "float32", 2, given=True)

        def finished(i: Index) -> list[Node]:
            nodes = [n for step in steps for n in self._finished(step, line, i)]
            tail = tensor_tensor(line[i], line[i], line[i], op="add", engine="vector")
            return [*nodes, *[tail] * self.work.tail]

        yield from finished(as_index(0)) if count == 1 else [loop(count, finished)]
        for number in self.work.kept:
            value = self.work.work.values[number]
            if value.source == "late":
                yield from self._stored_at_the_end(value, line)

    def _finished(self, step: Step, line: Tile, i: Index) -> list[Node]:
        source = self.work.work.values[next(r for r in step.reads if isinstance(r, int))]
        data = self._access(source, as_index(0), PARTITIONS, self.layout.per, False)
        height, width = line.shape
        psum = Tile("sums of all", "psum", (height, width), "float32", 2)
        if _on_tensor(step, data):
            filled = Tile("sums of columns, all", "psum", (height, width), "float32", given=True)
            sums = self._sums()[0][0 : min(height, PARTITIONS)]
            return [tensor_copy(line[i][:, 0:1], sums), tensor_copy(line[i], filled)]
        acc = self._accumulator(step, data)
        part = Tile("reduced", "sbuf", (PARTITIONS, 1), "float32", 2)
        axes = tuple(range(1, len(acc.shape)))
        kind = step.op.partition(" ")[2]
        op = kind if kind in ("add", "minimum", "multiply") else "maximum"
        nodes: list[Node] = [tensor_reduce(part[i], acc, op=op, axis=axes)]
        if kind != "add":  # by way of one partition, a block of columns after another
            row = Tile("all partitions", "sbuf", (1, height * width), "float32", 2)
            whole = Tile("columns", "sbuf", (PARTITIONS, height * width), "float32", given=True)
            nodes.append(tensor_partition_reduce(row[i], whole, op="maximum"))
            return [*nodes, tensor_copy(line[i][0:1, 0:1], row[i][:, 0:1])]
        ones = Tile("ones float32", "sbuf", (PARTITIONS, 1), "float32", given=True)
        columns = Tile("columns", "sbuf", (PARTITIONS, height), "float32", given=True)
        product = nc_matmul(
            psum[i][:, 0:1], columns, ones, accumulate=False, is_moving_onezero=True
        )
        after = nc_matmul(
            psum[i][0:1, 0:1], part[i], ones, accumulate=False, is_moving_onezero=True
        )
        return [
            *nodes,
            after,
            loop(width, lambda _: [product]),
            tensor_copy(line[i][:, 0:1], psum[i][:, 0:1]),
        ]

    def _stored_at_the_end(self, value: Value, line: Tile) -> Iterator[Node]:
        size, dtype = self.work.sizes[value.number], self.work.far_dtype(value)
        far = Tile(f"out {value.number}", "hbm", line.shape, dtype, _FAR)
        height, width = line.shape
        full, rest = divmod(size, height * width)
        if full:
            yield loop(full, lambda i: [dma_copy(far[i], line[0], engine=_STORE)])
        columns, last = divmod(rest, height)
        if columns:
            yield dma_copy(far[0][:, 0:columns], line[0][:, 0:columns], engine=_STORE)
        if last:
            yield dma_copy(far[1][0:last, 0:1], line[0][0:last, 0:1], engine=_STORE)


def _added_up(sums: Access, data: Access) -> Instruction:
    axes = tuple(range(len(sums.size), len(data.size))) or (len(data.size) - 1,)
    return tensor_reduce(sums, data, op="add", axis=axes)


def _on_tensor(step: Step, data: Access) -> bool:
    """Whether the tensor engine adds up a tile: floats, and more than a few columns."""
    return step.op == "reduce add" and data.free_size >= 64 and data.dtype in FP16_AND_32


FP16_AND_32 = ("float32", "bfloat16", "float16")
