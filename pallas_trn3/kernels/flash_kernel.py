"""The flash kernel: groups of 128 queries against sections of keys, in a pipeline of four stages.

1. Scores: products of queries and keys into PSUM, and out of it, scaled, with their maxima, in
   a few large moves that VectorE and ScalarE share.
2. Exponentials of a whole section less the maximum so far, their sums on the way.
3. Probabilities transposed, by TensorE into PSUM (on NeuronCore-v4 behind its products) and from
   there in large moves, or by the DMA engines.
4. Products with the values, summed up in PSUM over the section; rescaled and added to the result.

TensorE works for stages 1, 3 and 4 of different groups in turn, and waits for none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

ROWS = 128
"""Queries of a group, and keys that a product contracts at a time."""

TILE = 512
"""Keys of one product of scores: a bank of PSUM."""

FP32_MIN = float(jnp.finfo(jnp.float32).min)


@dataclass(frozen=True)
class Choices:
    """How the work is divided among the engines: what tuning is about."""

    section: int = 4096
    """Keys between two rescalings, a multiple of 512."""

    moved_by_scalar: int = 5
    """Of eight tiles of 512 keys, whose scores ScalarE moves out of PSUM (NeuronCore-v4); VectorE
    moves the rest."""

    turned_by_dma: int = 4
    """Of eight tiles, whose probabilities the DMA engines transpose; TensorE does the rest."""

    copied_by_vector: int = 0
    """Tiles of a section whose transposes VectorE moves out of PSUM; ScalarE the rest."""

    exponentials: Literal["vector", "scalar"] = "vector"
    """Who takes them; VectorE can from NeuronCore-v4 on."""

    bank: int = 512
    """Scores that lie side by side in PSUM: 512 or 1024."""

    move: int = 512
    """Columns of a move out of PSUM, at most."""

    raised: int = 1024
    """Exponentials of an instruction, at most."""

    def __post_init__(self) -> None:
        if self.section % TILE or self.section < TILE:
            raise ValueError(f"section={self.section}; it must be a multiple of {TILE}")
        for name in ("moved_by_scalar", "turned_by_dma", "copied_by_vector"):
            if not 0 <= getattr(self, name) <= 8:
                raise ValueError(f"{name}={getattr(self, name)}; of eight tiles, 0 to 8")
        for name, allowed in (
            ("exponentials", ("vector", "scalar")), ("bank", (512, 1024)),
            ("move", (128, 256, 512, 1024)), ("raised", (128, 256, 512, 1024, 2048, 4096)),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {allowed}")


@dataclass(frozen=True)
class Sizes:
    """What the kernel is made for."""

    groups: int
    """Groups of 128 queries that are in SBUF at a time."""

    section: int
    """Keys of the largest section."""

    features: int
    value_features: int
    dtype: Any
    scale: float
    residuals: bool
    generation: int


@dataclass(frozen=True)
class Step:
    """A group of queries against a section of keys."""

    group: Any
    slot: Any
    """Where the section's keys and values are."""

    tiles: tuple[tuple[int, int, bool], ...]
    """(first key, keys, whether some query does not see some of them) of each product."""

    store: Any
    """Writes a group's result to HBM: store(group, result, statistics)."""

    first: bool = False
    """Whether these are the group's first keys."""

    last: bool = False
    """Whether they are its last."""

    offset: int = 0
    """Of the section's keys, in the numbers that bounds of visible keys have."""

    origin: Any = 0
    """First of its keys in the slot, in groups of 128."""

    @property
    def keys(self) -> int:
        """Columns of the section, up to the last that someone sees."""
        return max(start + size for start, size, _ in self.tiles)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Numbers of its groups of 128 keys."""
        return tuple(
            chunk
            for start, size, _ in self.tiles
            for chunk in range(start // ROWS, (start + size) // ROWS)
        )


def scratch(sizes: Sizes, choices: Choices, slots: int, keys: int) -> dict[str, Any]:
    """The kernel's tiles by name; each of `slots` holds `keys` keys and their values."""
    groups, dtype, section = sizes.groups, sizes.dtype, sizes.section
    chunks, depth = section // ROWS, -(-sizes.features // ROWS)
    width = sizes.value_features
    f32 = jnp.float32
    # What transposes and products leave of PSUM.
    left = 16384 - 2 * 4 * ROWS * jnp.dtype(dtype).itemsize - 2 * max(512, 4 * width)
    banks = left // (4 * choices.bank)
    return {
        "q": pltrn.SBUF((groups, depth, sizes.features // depth, ROWS), dtype),
        "k": pltrn.SBUF((slots, depth, sizes.features // depth, keys), dtype),
        "v": pltrn.SBUF((slots, keys // ROWS, ROWS, width), dtype),
        "scores": pltrn.PSUM((banks, ROWS, choices.bank), f32),
        "scaled": pltrn.SBUF((2, ROWS, section), f32),
        "maxima": pltrn.SBUF((2, ROWS, 2 * section // ROWS), f32),
        "p": pltrn.SBUF((2, ROWS, 1, chunks, ROWS), dtype),
        "turning": pltrn.PSUM((2, ROWS, 4, ROWS), dtype),
        "turned": pltrn.SBUF((2, ROWS, 1, chunks, ROWS), dtype),
        "product": pltrn.PSUM((2, ROWS, width), f32),
        "m": pltrn.SBUF((groups, ROWS, 1), f32),
        "l": pltrn.SBUF((groups, ROWS, 1), f32),
        "alpha": pltrn.SBUF((groups, ROWS, 1), f32),
        "fresh": pltrn.SBUF((2, ROWS, 1), f32),
        "parts": pltrn.SBUF((2, ROWS, -(-section // choices.raised)), f32),
        "total": pltrn.SBUF((2, ROWS, 1), f32),
        "o": pltrn.SBUF((groups, ROWS, width), f32),
        "inverse": pltrn.SBUF((2, ROWS, 1), f32),
        "written": pltrn.SBUF((2, ROWS, width), dtype),
        "statistics": pltrn.SBUF((2, ROWS, 2), f32),
        "lowest": pltrn.SBUF((groups, ROWS, 1), f32),
        "highest": pltrn.SBUF((groups, ROWS, 1), f32),
    }  # fmt: skip


class Stages:
    """Emits the stages of steps."""

    def __init__(self, sizes: Sizes, choices: Choices, tiles: dict[str, Any]) -> None:
        self.sizes, self.choices = sizes, choices
        self.t = SimpleNamespace(**tiles)
        self.on_vector = choices.exponentials == "vector"

    def emit(self, steps: tuple[Step | None, ...]) -> None:
        """One step of the pipeline: (scores of, exponentials of, transposes of, products of).

        Each engine works in this order. VectorE finds a maximum, moves scores while it comes
        through, and then raises; ScalarE moves scores before it copies transposes; TensorE mixes
        the products, a transpose behind each.
        """
        new, raised, turned, multiplied = steps
        products = list(self.products(multiplied)) if multiplied is not None else []
        scores = list(self.scores(new)) if new is not None else []
        raises = list(self.exponentials(raised, turned)) if raised or turned else []
        pieces = iter(raises)
        transposes = iter([] if turned is None else list(self.transposes(turned)))
        scored = added = 0
        for is_product, act in _merged(scores, products):
            act()
            if is_product:
                added += 1
                if added == len(products) and multiplied is not None:
                    self.finish(multiplied)
            else:  # exponentials go between VectorE's moves
                begin = len(raises) * scored // len(scores)
                scored += 1
                for piece in itertools.islice(pieces, len(raises) * scored // len(scores) - begin):
                    piece()
            for transpose in itertools.islice(transposes, 1):
                transpose()
        for act in itertools.chain(pieces, transposes):
            act()

    # Stage 1.

    def scores(self, step: Step) -> Iterator[Any]:
        """Products of a group with tiles of keys; with the last of a bank the moves out of it."""
        parity, columns = lax.rem(step.group, 2), itertools.count()
        wide = self.t.scores.shape[-1]
        banks = self._banks(step)
        for number, tiles in enumerate(banks):
            place = lax.rem(step.group * len(banks) + number, self.t.scores.shape[0])
            bank = self.t.scores.at[place]
            for tile in tiles:
                start, size, _ = tile

                def act(
                    tile: Any = tile, start: int = start, size: int = size, bank: Any = bank,
                    tiles: Any = tiles,
                ) -> None:  # fmt: skip
                    for part in range(self.t.q.shape[1]):
                        keys = pl.ds(step.origin * ROWS + start, size)
                        pltrn.nc_matmul(
                            bank.at[:, pl.ds(start % wide, size)],
                            self.t.q.at[step.group, part],
                            self.t.k.at[step.slot, part, :, keys],
                            accumulate=part > 0,
                        )
                    if tile is tiles[-1]:
                        self._moves(step, tiles, bank, parity, columns)

                yield act

    def _banks(self, step: Step) -> list[list[tuple[int, int, bool]]]:
        """The tiles of a step that share a place in PSUM."""
        wide = self.t.scores.shape[-1]
        grouped = itertools.groupby(step.tiles, lambda tile: tile[0] // wide)
        return [list(tiles) for _, tiles in grouped]

    def _parts(self, tiles: Sequence[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
        """Moves out of a place in PSUM: (first key, keys, masked)."""
        move, parts = self.choices.move, []
        for masked, run in itertools.groupby(tiles, lambda tile: tile[2]):
            some = list(run)
            end = some[-1][0] + some[-1][1]
            if masked:
                parts += some
            else:
                parts += [(at, min(move, end - at), False) for at in range(some[0][0], end, move)]
        return parts

    def _moves(
        self, step: Step, tiles: Sequence[tuple[int, int, bool]], bank: Any, parity: Any,
        columns: Iterator[int],
    ) -> None:  # fmt: skip
        """Scores out of PSUM, and their maxima."""
        scaled, scale = self.t.scaled.at[parity], self.sizes.scale
        for at, size, masked in self._parts(tiles):
            source = bank.at[:, pl.ds(at % bank.shape[-1], size)]
            into = scaled.at[:, pl.ds(at, size)]
            column = self.t.maxima.at[parity, :, pl.ds(next(columns), 1)]
            if masked:
                pltrn.activation(into, source, scale=scale, op="copy")
                pltrn.range_select(
                    into, into, self.t.lowest.at[step.group], self.t.highest.at[step.group],
                    column, comp_op0="greater_equal", comp_op1="less_equal",
                    range_start=step.offset + at,
                )  # fmt: skip
            elif self._by_scalar(step, at):
                pltrn.activate2(
                    into, source, scale, reduce_res=column, op="copy", op0="multiply", op1="bypass",
                    reduce_op="maximum", reduce_cmd="reset_reduce",
                )  # fmt: skip
            else:
                pltrn.tensor_scalar_reduce(
                    into, source, scale, column, op0="multiply", reduce_op="maximum"
                )

    def _by_scalar(self, step: Step, at: int) -> bool:
        """Whether ScalarE moves the scores of this key: its tiles are among VectorE's, evenly."""
        if self.sizes.generation < 4:
            return False
        tile, share = at // TILE, self.choices.moved_by_scalar
        return (tile + 1) * share // 8 > tile * share // 8

    # Stage 2.

    def largest(self, step: Step) -> None:
        """The maximum of a section; for ScalarE, which adds its bias, minus it."""
        parity = lax.rem(step.group, 2)
        count = sum(len(self._parts(tiles)) for tiles in self._banks(step))
        maxima = self.t.maxima.at[parity, :, pl.ds(0, count)]
        into = self.t.m.at[step.group] if step.first else self._fresh(step)
        pltrn.tensor_reduce(into, maxima, op="maximum", axis=1, negate=not self.on_vector)

    def exponentials(self, step: Step | None, before: Step | None) -> Iterator[Any]:
        """In parts: the maximum, exp(scores - maximum) and its sums, and what earlier results are
        to be multiplied by; the sums of the step before it."""

        def begin() -> None:
            if step is not None:
                self.largest(step)
            if before is not None:
                self.summed(before)
            if step is not None and not step.first:
                better = "maximum" if self.on_vector else "minimum"
                fresh = self._fresh(step)
                pltrn.tensor_tensor(fresh, fresh, self.t.m.at[step.group], op=better)

        if step is None:
            yield begin
            return
        raised = self.choices.raised
        for at in range(0, step.keys, raised):

            def act(at: int = at) -> None:
                if at == 0:
                    begin()
                self._raise(step, at, min(raised, step.keys - at))
                if at + raised >= step.keys:
                    self._rescale(step)

            yield act

    def _fresh(self, step: Step) -> Any:
        return self.t.fresh.at[lax.rem(step.group, 2)]

    def _raise(self, step: Step, at: int, size: int) -> None:
        parity = lax.rem(step.group, 2)
        largest = self.t.m.at[step.group] if step.first else self._fresh(step)
        source = self.t.scaled.at[parity, :, pl.ds(at, size)]
        into = self._probabilities(parity, at, size)
        sums = self.t.parts.at[parity, :, pl.ds(at // self.choices.raised, 1)]
        if self.on_vector:
            pltrn.exponential(into, source, largest, sums, reduce_cmd="reset_reduce")
        else:
            pltrn.activation_reduce(into, source, sums, largest, op="exp", reduce_op="add")

    def _probabilities(self, parity: Any, at: int, size: int) -> Any:
        """Where those of some keys go."""
        return self.t.p.at[parity, :, :, pl.ds(at // ROWS, size // ROWS), :]

    def _rescale(self, step: Step) -> None:
        if step.first:
            return
        m, alpha, fresh = self.t.m.at[step.group], self.t.alpha.at[step.group], self._fresh(step)
        if self.on_vector:
            pltrn.exponential(alpha, m, fresh)
        else:
            pltrn.activation(alpha, m, fresh, -1.0, op="exp")
        pltrn.tensor_copy(m, fresh, engine="gpsimd")

    def summed(self, step: Step) -> None:
        """Sums so far, rescaled."""
        parity, before = lax.rem(step.group, 2), self.t.l.at[step.group]
        count = -(-step.keys // self.choices.raised)
        total = before if step.first else self.t.total.at[parity]
        parts = self.t.parts.at[parity, :, pl.ds(0, count)]
        pltrn.tensor_reduce(total, parts, op="add", axis=1)
        if not step.first:
            alpha = self.t.alpha.at[step.group]
            pltrn.scalar_tensor_tensor(before, before, alpha, total, op0="multiply", op1="add")

    # Stage 3.

    def transposes(self, step: Step) -> Iterator[Any]:
        """Probabilities of 128 keys at a time, keys on partitions afterwards."""
        parity = lax.rem(step.group, 2)
        chunks = step.chunks
        tiles = [chunks[k : k + 4] for k in range(0, len(chunks), 4)]
        share = self.choices.turned_by_dma if self.t.p.dtype.itemsize == 2 else 0
        by_dma = round(len(tiles) * share / 8)
        for number, tile in enumerate(tiles):
            if number >= len(tiles) - by_dma:
                yield self._turned_by_dma(parity, tile, number)
                continue
            for place, chunk in enumerate(tile):
                last = place == len(tile) - 1

                def act(
                    place: int = place, chunk: int = chunk, tile: Any = tile,
                    number: int = number, last: bool = last,
                ) -> None:  # fmt: skip
                    turning = self.t.turning.at[number % 2]
                    pltrn.nc_transpose(turning.at[:, place], self.t.p.at[parity, :, 0, chunk])
                    if last:
                        self._copied(parity, tile, turning, number)

                yield act

    def _turned_by_dma(self, parity: Any, tile: Sequence[int], number: int) -> Any:
        def act() -> None:
            part = pl.ds(tile[0], len(tile))
            pltrn.dma_transpose(
                self.t.turned.at[parity, :, :, part, :], self.t.p.at[parity, :, :, part, :],
                engine=("dma:sync", "dma:scalar")[number % 2],
            )  # fmt: skip

        return act

    def _copied(self, parity: Any, tile: Sequence[int], turning: Any, number: int) -> None:
        """Transposes out of PSUM."""
        engine = "vector" if number < self.choices.copied_by_vector else "scalar"
        width = max(1, min(self.choices.move, TILE) // ROWS)
        for at in range(0, len(tile), width):
            size = min(width, len(tile) - at)
            pltrn.tensor_copy(
                self.t.turned.at[parity, :, 0, pl.ds(tile[0] + at, size), :],
                turning.at[:, pl.ds(at, size), :],
                engine=engine,
            )

    # Stage 4.

    def products(self, step: Step) -> Iterator[Any]:
        """Probabilities with values, into PSUM."""
        parity = lax.rem(step.group, 2)
        for number, chunk in enumerate(step.chunks):

            def act(number: int = number, chunk: int = chunk) -> None:
                pltrn.nc_matmul(
                    self.t.product.at[parity],
                    self.t.turned.at[parity, :, 0, chunk],
                    self.t.v.at[step.slot, step.origin + chunk],
                    accumulate=number > 0,
                )

            yield act

    def finish(self, step: Step) -> None:
        """The product added to what was there before, rescaled; the last of a group is divided."""
        group, parity = step.group, lax.rem(step.group, 2)
        product, o = self.t.product.at[parity], self.t.o.at[group]
        if not step.first:
            pltrn.scalar_tensor_tensor(
                o, o, self.t.alpha.at[group], product, op0="multiply", op1="add"
            )
        elif not step.last:
            pltrn.activation(o, product, op="copy")
        if step.last:
            self.divide(step, product if step.first else o)

    def divide(self, step: Step, result: Any) -> None:
        """A group's result by its sums, and out."""
        group = step.group
        parity = lax.rem(group, 2)
        inverse, written = self.t.inverse.at[parity], self.t.written.at[parity]
        pltrn.reciprocal(inverse, self.t.l.at[group])
        pltrn.activation(written, result, scale=inverse, op="copy")
        statistics = None
        if self.sizes.residuals:
            statistics = self.t.statistics.at[parity]
            for column, tile in enumerate((self.t.m, self.t.l)):
                pltrn.tensor_copy(
                    statistics.at[:, pl.ds(column, 1)], tile.at[group], engine="gpsimd"
                )
        step.store(group, written, statistics)


def _merged(scores: list[Any], products: list[Any]) -> list[tuple[bool, Any]]:
    """Both in their order, evenly mixed, scores last; and whether it is a product."""
    places = [((k + 1) / len(scores), False, x) for k, x in enumerate(scores)]
    places += [((k + 0.5) / len(products), True, x) for k, x in enumerate(products)]
    return [x[1:] for x in sorted(places, key=lambda place: place[:2])]
