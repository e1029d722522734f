"""What a kernel must not do, looked for while the reference executor runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..errors import (
    OutOfBounds,
    Race,
    UndefinedValue,
    UnwrittenOutput,
)
from ..kernel import Block, Kernel
from ..params import explicit
from ..source import line
from . import shadows
from .operands import legal_starts, rows_exist
from .order import COPY, KERNEL, Access, Order
from .selection import Selection
from .storage import Keys, Partly, Storage, part, parts
from .sums import Sums
from .waits import Semaphores, is_semaphore


@dataclass(frozen=True)
class Origin:
    """Where undefined elements come from."""

    text: str
    told: bool = False
    """Whether the text says where they were read; else they lie in memory."""

    output: bool = False
    """Whether they are an output's, which nothing has written."""


class Checks:
    """One run of a kernel under the checks. Everything wrong raises a `KernelError`."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel.name
        self.where = str(getattr(kernel.jaxpr.debug_info, "func_src_info", kernel.name))
        self.explicit = explicit(kernel.params)
        self.order = Order()
        self.semaphores = Semaphores(kernel, self.order)
        self.origins = [Origin("")]
        self.read_at: dict[tuple[int, int], int] = {}
        self.agent = KERNEL
        self.engines: dict[str, None] = {}
        self.copies: dict[Any, str] = {}
        """Agents by line and semaphore."""
        self.within: Any = None
        """The instruction whose meaning is being followed."""

    # ---- memory ----

    def allocated(self, name: str, equation: Any) -> int:
        """New memory; where its undefined elements come from."""
        return self._origin(Origin(name))

    def output(self, name: str, number: int) -> int:
        """An output that nothing has written."""
        return self._origin(Origin(name, output=True))

    def padding(self, name: str, shape: tuple[int, ...]) -> int:
        """What a block holds behind the edge of its array."""
        return self._origin(Origin(f"{name} behind the edge of its array of shape {shape}"))

    def masked_off(self, name: str, equation: Any) -> int:
        """What a masked load without `other=` has in lanes that it did not load."""
        return self._origin(
            Origin(f"a lane of {name} that the mask takes out, {line(equation)}", told=True)
        )

    def freed(self, scoped: Sequence[Storage], equation: Any) -> None:
        """Memory is given back."""
        for ref in scoped:
            if is_semaphore(ref):
                self.semaphores.ended(ref, line(equation))
            elif ref.order:
                past = self.order.conflict(ref, (), True, KERNEL, equation)
                if past is not None:
                    raise Race(
                        f"kernel {self.kernel}: {ref.name} is given back at the end of "
                        f"{line(equation)} while {_doing(past)} {line(past.equation)} may still "
                        "be under way; wait for it in the scope"
                    )

    def _origin(self, origin: Origin) -> int:
        self.origins.append(origin)
        return len(self.origins) - 1

    # ---- accesses ----

    def keys(
        self, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any]
    ) -> Keys:
        """NumPy's indices of a part that lies inside."""
        self.defined_indices(equation, selection, inputs)
        return selection.keys(inputs, lambda text: self.outside(equation, ref, text))

    def defined_indices(self, equation: Any, selection: Selection, inputs: Sequence[Any]) -> None:
        """Indices that something has written."""
        if selection.indexers and any(type(x) is Partly for x in inputs):
            for number in selection.numbers:
                if type(inputs[number]) is Partly:
                    self.undefined(inputs[number], equation, "an index")

    def defined_mask(self, equation: Any, mask: Any) -> None:
        """A mask that something has written."""
        if type(mask) is Partly:
            self.undefined(mask, equation, "a mask")

    def outside(self, equation: Any, ref: Storage, text: str) -> None:
        """**Raises:** `OutOfBounds`."""
        raise OutOfBounds(
            f"kernel {self.kernel}, {line(equation)}: {ref.name} of shape {ref.shape} has no {text}"
        )

    def read(self, equation: Any, ref: Storage, keys: Keys) -> Any:
        """What lies there, undefined elements labelled with this line."""
        self._ordered(equation, ref, keys, False)
        found = ref.read(keys)
        return self._labelled(equation, ref, keys, found) if type(found) is Partly else found

    def write(self, equation: Any, ref: Storage, keys: Keys, value: Any) -> None:
        """Puts a value there."""
        self._ordered(equation, ref, keys, True)
        if ref.output and type(value) is Partly:
            value = self._stored(equation, ref, value)
        ref.write(value, keys)
        if ref.sums is not None:
            ref.sums.written(equation, keys, self.agent)

    def _ordered(self, equation: Any, ref: Storage, keys: Keys, write: bool) -> None:
        if self.agent == KERNEL:
            if ref.order is None:
                return
            if self.engines:
                self.order.meet(list(self.engines))
        past = self.order.conflict(ref, keys, write, self.agent, equation)
        if past is not None:
            self._race(equation, ref, write, past)

    def _race(self, equation: Any, ref: Storage, write: bool, past: Access) -> None:
        this = "writes" if write else "reads"
        asynchronous = past.agent.startswith(COPY)
        advice = (
            "wait for the copy" if asynchronous else "signal a semaphore there, wait for it here"
        )
        raise Race(
            f"kernel {self.kernel}, {line(equation)}: a race in {ref.name}: {self.agent} {this} "
            f"elements {_box_text(past)} or a part of them while {_doing(past)} "
            f"{line(past.equation)} ({past.agent}) may still be under way; {advice} first "
            "(copies that share a semaphore are over only when all of them are)"
        )

    # ---- undefined values ----

    def _labelled(self, equation: Any, ref: Storage, keys: Keys, found: Partly) -> Partly:
        shadow = np.array(found.shadow)
        for number in np.unique(shadow[shadow > 0]):
            number = int(number)
            if not self.origins[number].told:
                shadow[shadow == number] = self._read_at(equation, ref, keys, found, number)
        return Partly(found.value, shadow)

    def _read_at(self, equation: Any, ref: Storage, keys: Keys, found: Partly, number: int) -> int:
        known = self.read_at.get((number, id(equation)))
        if known is None:
            index = np.arange(int(np.prod(ref.shape)), dtype=np.int64).reshape(ref.shape)
            first = int(np.asarray(part(index, keys))[found.shadow == number].flat[0])
            place = [int(k) for k in np.unravel_index(first, ref.shape)] if ref.shape else []
            count = int((found.shadow == number).sum())
            text = (
                f"{count} of the elements of {self.origins[number].text} that {line(equation)} "
                f"reads have never been written, the first is {ref.name}{place}"
            )
            known = self._origin(Origin(text, told=True))
            self.read_at[number, id(equation)] = known
        return known

    def _stored(self, equation: Any, ref: Storage, value: Partly) -> Partly:
        """Who wrote undefined values to an output is part of what is told."""
        shadow = np.array(value.shadow)
        for number in np.unique(shadow[shadow > 0]):
            key = (int(number), id(equation))
            if key not in self.read_at:
                text = f"{line(equation)} stores an undefined value: {self.origins[number].text}"
                self.read_at[key] = self._origin(Origin(text, told=True))
            shadow[shadow == number] = self.read_at[key]
        return Partly(value.value, shadow)

    def undefined(self, value: Partly, equation: Any, used_as: str) -> None:
        """**Raises:** `UndefinedValue`."""
        equation = self.within or equation
        where = self.where if equation is None else line(equation)
        origin = self.origins[int(value.shadow.max())]
        raise UndefinedValue(
            f"kernel {self.kernel}, {where}: {used_as} is undefined: {origin.text}; write it first"
        )

    def shadowed(self, equation: Any, inputs: Sequence[Any], results: Any) -> Any:
        """Results with their shadows."""
        return shadows.shadowed(
            equation, inputs, results, lambda v, what: self.undefined(v, equation, what)
        )

    # ---- blocks ----

    def block(self, run: Any, block: Block, start: tuple[int, ...], ids: tuple[int, ...]) -> None:
        """A block that lies inside of its array."""
        shape = run.arrays[block.number].shape
        for axis, (first, size, extent) in enumerate(zip(start, block.sizes, shape)):
            if 0 <= first <= extent - size:
                continue
            name = run.arrays[block.number].name
            closed = block.mapping.index_map_jaxpr
            info = getattr(closed, "jaxpr", closed).debug_info
            raise OutOfBounds(
                f"kernel {self.kernel}, index map {info.func_src_info}: at grid step {ids} the "
                f"block of {name} is number {first // size} in dimension {axis} (elements {first} "
                f"to {first + size - 1}); the array of shape {block.mapping.array_aval.shape} has "
                f"blocks 0 to {max(extent // size - 1, 0)} of {size}"
            )

    def moved_on(self, cut: Storage, block: Block) -> None:
        """A block whose place in memory is the next one's now."""
        if not cut.order:
            return
        past = self.order.conflict(cut, (), True, KERNEL, None)
        if past is not None and past.agent.startswith(COPY):
            raise Race(
                f"kernel {self.kernel}: the grid goes on to the next block of {cut.name} while "
                f"{_doing(past)} {line(past.equation)} ({past.agent}) may still be under way; wait "
                "for it in the same step"
            )

    def ended(self, run: Any, outputs: Sequence[Block]) -> None:
        """The kernel is over: all outputs written, nothing under way."""
        for ref in run.scratch:
            if is_semaphore(ref):
                self.semaphores.ended(ref, self.where)
        for block in outputs:
            self._all_written(run.arrays[block.number], block)

    def _all_written(self, array: Storage, block: Block) -> None:
        shadow = array.shadow()
        if shadow is None:
            return
        shape = block.mapping.array_aval.shape
        low = [p[0] for p in block.padding]
        shadow = shadow[tuple(slice(a, a + n) for a, n in zip(low, shape))]
        if not shadow.any():
            return
        told = [n for n in np.unique(shadow[shadow > 0]) if not self.origins[n].output]
        number = told[0] if told else int(shadow.max())
        where = shadow == number
        first = [int(k) for k in np.argwhere(where)[0]] if shape else []
        count = f"{int(where.sum())} of {where.size} elements of output {array.name}"
        origin = self.origins[number]
        if origin.output:
            raise UnwrittenOutput(
                f"kernel {self.where}: {count} are never written, the first is "
                f"{array.name}{first}; write all of it, or let the grid visit all blocks"
            )
        raise UndefinedValue(
            f"kernel {self.kernel}: {count} are undefined, the first is {array.name}{first}: "
            f"{origin.text}; write it first"
        )

    # ---- copies ----

    def copying(
        self, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any]
    ) -> Keys:
        """A copy begins; what it reads and writes it does beside the kernel. The semaphore that it
        will signal."""
        keys = self.keys(equation, ref, selection, inputs)
        place = (id(equation), id(ref), str(keys))
        self.agent = self.copies.setdefault(place, f"{COPY}{len(self.copies) + 1}")
        self.order.step(self.agent)
        return keys

    def copied(self, equation: Any, ref: Storage, keys: Keys, count: int) -> None:
        """It will signal its semaphore when it is done."""
        self.semaphores.signal(equation, ref, keys, count, self.agent)
        self.agent = KERNEL

    def sent(self, sender: Any, equation: Any, value: Any) -> Any:
        """A value from another device; what is undefined of it has its origin there."""
        if type(value) is not Partly:
            return value
        origin = sender.checks.origins[int(value.shadow.max())]
        text = f"device {sender.rank} sent it, {line(equation)}: {origin.text}"
        number = self._origin(Origin(text, told=True))
        return Partly(value.value, np.where(value.shadow > 0, number, 0).astype(np.int32))

    # ---- instructions ----

    def issued(self, instruction: Any, inputs: Sequence[Any]) -> None:
        """An engine begins an instruction."""
        legal_starts(instruction, inputs)
        if self.explicit:
            self.agent = instruction.engine
            self.engines[self.agent] = None
            self.order.step(self.agent)

    def underneath(self, instruction: Any, inputs: Sequence[Any]) -> dict[str, Any]:
        """What lies where an instruction writes."""
        found = {}
        for name, place in instruction.refs.items():
            if instruction.roles[name] == "read":
                continue
            ref, selection = inputs[place.number], place.selection
            keys = self.keys(instruction.equation, ref, selection, inputs)
            value = ref.read(keys)
            if instruction.roles[name] == "accumulate" and ref.memory == "psum":
                value = self._summed(instruction, inputs, ref, keys, value)
            found[name] = value
        return found

    def _summed(
        self, instruction: Any, inputs: Sequence[Any], ref: Storage, keys: Keys, value: Any
    ) -> Any:
        """What a matmul adds to. Nobody having told it to, it adds to what is there, or starts."""
        going_on = dict(instruction.params).get("accumulate")
        if instruction.accumulate is not None:
            number = inputs[instruction.accumulate]
            if type(number) is Partly:
                self.undefined(number, instruction.equation, "accumulate")
            going_on = bool(number)
        if ref.sums is None:
            ref.sums = Sums(ref.shape)
        value, _ = parts(value)  # what was never written counts as zero
        if going_on is not False:
            ref.sums.goes_on(self.kernel, instruction.equation, ref, keys, going_on)
        return value

    def applied(self, machine: Any, instruction: Any, given: list[Any]) -> Any:
        """An instruction's results, with shadows if some of its operands have any."""
        for value, name in rows_exist(self.kernel, instruction, given):
            self.undefined(value, instruction.equation, name)
        flat, tree = jax.tree.flatten(given, is_leaf=lambda x: type(x) is Partly)
        plain = jax.tree.unflatten(tree, [parts(x)[0] for x in flat])
        results = instruction.apply(plain)
        if not any(type(x) is Partly for x in flat):
            return results
        program, used = instruction.followed(plain)
        if not any(type(x) is Partly and k in used for k, x in enumerate(flat)):
            return results
        self.within = instruction.equation
        jaxpr, consts = program
        followed = _finished(machine.run(jaxpr, consts, flat))
        self.within = None
        values, out = jax.tree.flatten(results)
        return jax.tree.unflatten(
            out, [Partly.of(v, parts(f)[1]) for v, f in zip(values, followed, strict=True)]
        )

    def finished(self, instruction: Any, inputs: Sequence[Any]) -> None:
        """An engine has carried it out."""
        for name, place in instruction.refs.items():
            ref = inputs[place.number]
            if instruction.roles[name] == "accumulate" and ref.sums is not None:
                ref.sums.summed(place.selection.keys(inputs))
        self.agent = KERNEL


def _finished(running: Any) -> Any:
    try:
        while True:
            next(running)
    except StopIteration as end:
        return end.value


def _doing(past: Access) -> str:
    return "a write by" if past.write else "a read by"


def _box_text(past: Access) -> str:
    ends = [f"{r.start}:{r.stop}" + (f":{r.step}" if r.step != 1 else "") for r in past.box]
    return f"[{', '.join(ends)}]"
