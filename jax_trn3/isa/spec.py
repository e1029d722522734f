"""What an instruction is: where it runs, what it may work on, what it costs and what it means.

`@instruction(...)` enters a function into `TABLE`. The function's body is the instruction's meaning
in JAX; what the decorator is told are its limits and its price. Calling the result makes an
`Instruction` for a program, as `nki.isa` does: `nc_matmul(dst, stationary, moving)`.

**A meaning** is a pure function of

- the operands it reads, in the table's order, as arrays of their shapes; None for one left out, the
  number for an immediate one. A packed operand (x4) is an array with a last axis of 4.
- the instruction's parameters, keyword-only, enumerations as strings by NKI's names.
- keyword-only names in `SUPPLIED`, which are no parameters: whoever executes it fills them in.
  `out`: a `jax.ShapeDtypeStruct` of the operand written; a tuple of them, None for one left out,
  where the table has several. `previous`: the value under an "accumulate" operand, None where a sum
  starts. `state`: what the engine remembers, None where it remembers nothing yet. `engine`: the
  name of the one that runs it, where engines differ.

It returns the value written, a tuple of them for several (one left out is ignored), and with
`state` a pair of that and the new state. Shapes are those of `out` up to a reshape; dtypes may be
wider: the executor casts to the operand's type (`dtypes.cast` says how it rounds).

**State** is one of `STATES`: an engine's "accumulators" (one float32 a partition) or "prng" (one
row of uint32 a partition), of which a meaning sees the rows of its partitions; or the "registers"
of the sequencers, a dict from name to int32.

**Indirection**: an operand that may be `indirect` has an optional companion `<name>_index` behind
all others: offsets along its free axis to gather from, or to scatter to (`indirect.py`). A meaning
does not notice; `Instruction.shape(name)` is the shape that it sees.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from jax_trn3.hardware import NeuronCore

from .dtypes import INDEX, PLAIN
from .indirect import offsets
from .operand import Access, Memory, Tile

Engine = Literal["tensor", "vector", "scalar", "gpsimd", "sync", "dma", "collective"]

SUPPLIED = ("previous", "out", "state", "engine")
"""Keyword-only arguments of a meaning that whoever executes it supplies."""

State = Literal["accumulators", "prng", "registers"]
STATES: tuple[State, ...] = ("accumulators", "prng", "registers")
"""What an engine remembers from one instruction to the next."""


@dataclass(frozen=True)
class Origin:
    """What a person wrote that an instruction comes from."""

    file: str = ""
    line: int = 0
    operation: str = ""
    """The operation above it, e.g. JAX's name of a primitive."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "unknown line"
        return f"{self.operation} at {place}" if self.operation else place


@dataclass(frozen=True)
class Semaphore:
    """A counter that instructions signal and wait for; a wait takes what it waited for."""

    name: str


@dataclass(frozen=True)
class Register:
    """A virtual register of a sequencer: 32 bits, no memory (`register_alloc` and its kin)."""

    name: str


@dataclass(frozen=True)
class Operand:
    """One operand of an instruction and what it may be."""

    name: str
    role: Literal["read", "write", "accumulate"]
    """"accumulate": added to what is there, or written where the instruction starts a sum."""

    memories: tuple[Memory, ...] = ("sbuf", "psum")
    dtypes: tuple[str, ...] = PLAIN
    optional: bool = False
    scalar: bool = False
    """Whether a Python number may stand in for a tile (immediate operand)."""

    indirect: bool = False
    """Whether it may be gathered or scattered by offsets in `<name>_index` (NeuronCore-v4)."""

    index_of: str | None = None
    """The operand whose offsets it holds; a meaning does not get it."""

    quadrant_starts: tuple[int, ...] = ()
    """Where in a quadrant it may start, if not by the usual rule (scales of MX tiles)."""


def reads(name: str, *memories: Memory, dtypes: tuple[str, ...] = PLAIN, **options: Any) -> Operand:
    """An operand that is read, from SBUF or PSUM unless `memories` says otherwise."""
    return Operand(name, "read", memories or ("sbuf", "psum"), dtypes, **options)


def writes(
    name: str, *memories: Memory, dtypes: tuple[str, ...] = PLAIN, **options: Any
) -> Operand:
    """An operand that is written, in SBUF or PSUM unless `memories` says otherwise."""
    return Operand(name, "write", memories or ("sbuf", "psum"), dtypes, **options)


@dataclass(frozen=True)
class DmaWork:
    """What a transfer asks of the DMA engines and of memory."""

    engine_ps: tuple[int, ...]
    """Time that each DMA engine of the core is busy, integer picoseconds, by its index."""

    packets: int
    """Packets that the engines send, all together."""

    bytes: int
    """Bytes that pass through the engines."""

    bytes_read_hbm: int = 0
    bytes_written_hbm: int = 0

    mode: str = "none"
    """Who writes the descriptors: a key of `DmaEngines.issue_ns`."""

    issue_ns: int = 0
    """Time that the engine which issues the transfer is held, ns."""

    latency_ns: int = 0
    """Time from its start until the first byte moves, ns."""

    least_ps: int = 0
    """Time from its start to its end even if its own engines are faster (links of a collective)."""


@dataclass(frozen=True)
class Work:
    """What an instruction asks of its engine."""

    cycles: float = 0.0
    """Cycles for which the engine can take no other instruction."""

    load_cycles: float = 0.0
    """Tensor engine: cycles to load the stationary operand, hidden behind what ran before."""

    flops: int = 0
    """Multiplications and additions that the result needs (a multiply-add counts as 2)."""

    hardware_flops: int = 0
    """Those that the array carries out for it: passes and transposes count."""

    array_tile: tuple[int, ...] = ()
    """Tensor engine: first row and column, rows and columns of the array that it uses, where it was
    told to leave the rest to others; () is all of it."""

    mode: str = "1x"
    """Vector, scalar and GpSimd engine: the rate, a key of `ComputeEngine.elements_per_cycle`."""

    background: bool = False
    """Tensor engine: whether it runs beside the instruction before it (v4 transposes)."""

    dma: DmaWork | None = None
    """What a transfer asks of the DMA engines."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program: a line of the table with its operands."""

    name: str
    engine: str
    """Engine that runs it; of a DMA the queue it is issued on, "dma:<queue>"."""

    operands: tuple[tuple[str, Access], ...]
    params: tuple[tuple[str, Any], ...] = ()
    origin: Origin = Origin()
    wait: tuple[tuple[Semaphore, int], ...] = ()
    """Semaphores and the counts that must be there before it starts."""

    signal: tuple[tuple[Semaphore, int], ...] = ()
    """Semaphores and the counts it adds when it is done."""

    core: int = 0

    def __getitem__(self, name: str) -> Access:
        """The operand of that name."""
        for known, access in self.operands:
            if known == name:
                return access
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The operand or parameter of that name."""
        for known, value in (*self.operands, *self.params):
            if known == name:
                return value
        return default

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an operand as the meaning sees it: gathered or scattered where it has an
        index."""
        access, index = self[name], self.get(f"{name}_index")
        if not isinstance(index, Access):
            return access.shape
        if self.engine.partition(":")[0] == "dma":
            return (index.elements, *access.shape[1:])
        return (access.partitions, offsets(index, self.engine))

    def updates(self, operand: Operand) -> bool:
        """Whether what lies under a written operand counts: where it is added to or scattered
        to."""
        if operand.role == "read":
            return False
        if self.get(f"{operand.name}_index") is not None:
            return True
        accumulate = self.get("accumulate")
        return bool(accumulate) or (operand.role == "accumulate" and accumulate is None)

    def free_size(self, name: str) -> int:
        """Elements a partition of an operand as the meaning sees it."""
        return math.prod(self.shape(name)[1:])

    @property
    def spec(self) -> "InstructionSpec":
        """Its line of the table."""
        return TABLE[self.name]

    def __str__(self) -> str:
        operands = ", ".join(f"{name}={access}" for name, access in self.operands)
        return f"{self.name}({operands}) on {self.engine} from {self.origin}"


Rule = Callable[[Instruction, NeuronCore], Iterable[str]]
"""Yields what is wrong with an instruction on a core, each with numbers and the limit."""

Cost = Callable[[Instruction, NeuronCore], Work]


@dataclass(frozen=True)
class InstructionSpec:
    """A line of the table."""

    name: str
    engines: tuple[Engine, ...]
    """Engines that can run it, the one chosen without being asked first."""

    operands: tuple[Operand, ...]
    meaning: Callable[..., Any]
    """The JAX function: arrays of the operands read, in order, then the parameters by name."""

    cost: Cost
    source: str
    rules: tuple[Rule, ...] = ()
    since: int = 2
    """Generation of NeuronCore that has it first."""

    params: tuple[str, ...] = ()
    """Names of the parameters (keyword-only arguments of the meaning, but for SUPPLIED)."""

    required: tuple[str, ...] = ()
    """Parameters that have no default."""

    supplied: tuple[str, ...] = ()
    """Names out of SUPPLIED that the meaning takes."""

    state: State | None = None
    """What of the engine's state it reads or changes."""

    chooses: Callable[[Instruction], str] | None = None
    """Which engine runs it where the program does not say; None is the first."""

    def __call__(
        self,
        *operands: Access | Tile | float | None,
        engine: str | None = None,
        origin: Origin | None = None,
        wait: tuple[tuple[Semaphore, int], ...] = (),
        signal: tuple[tuple[Semaphore, int], ...] = (),
        core: int = 0,
        **named: Any,
    ) -> Instruction:
        """An instruction for a program; operands in the table's order or by name.

        **Raises:** `TypeError` for an operand or parameter that it does not have or that is
        missing.
        """
        given: dict[str, Any] = dict(zip((o.name for o in self.operands), operands))
        if len(operands) > len(self.operands):
            raise TypeError(f"{self.name} takes {len(self.operands)} operands, not {len(operands)}")
        params: dict[str, Any] = {}
        for name, value in named.items():
            if name in given or name not in (*(o.name for o in self.operands), *self.params):
                known = ", ".join([*(o.name for o in self.operands), *self.params])
                raise TypeError(f"{self.name}: {name!r} is given twice or unknown; it has {known}")
            (params if name in self.params else given)[name] = value
        accesses = []
        for operand in self.operands:
            value = given.get(operand.name)
            if isinstance(value, Tile) and value.slots == 1:
                value = Access(value)
            if isinstance(value, Access):
                accesses.append((operand.name, value))
            elif value is None and operand.optional:
                continue
            elif operand.scalar and isinstance(value, (int, float)):
                params[operand.name] = value
            else:
                raise TypeError(f"{self.name}: operand {operand.name} cannot be {value!r}")
        if missing := [name for name in self.required if name not in params]:
            raise TypeError(f"{self.name} needs {', '.join(missing)}")
        made = Instruction(
            self.name,
            engine or ("dma:sync" if self.engines[0] == "dma" else self.engines[0]),
            tuple(accesses),
            tuple(sorted(params.items())),
            origin or _caller(),
            wait,
            signal,
            core,
        )
        chosen = self.chooses(made) if self.chooses and not engine else made.engine
        return made if chosen == made.engine else replace(made, engine=chosen)


def _caller() -> Origin:
    """The line outside this package that is making an instruction."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno)


CUSTOM: dict[str, InstructionSpec] = {}
"""Operations that programs bring along, by name."""


class _Table(dict[str, InstructionSpec]):
    """Finds programs' own operations, too; lists the hardware's only."""

    def __missing__(self, name: str) -> InstructionSpec:
        return CUSTOM[name]


TABLE: dict[str, InstructionSpec] = _Table()
"""Every instruction by name."""


def instruction(
    *operands: Operand,
    engines: tuple[Engine, ...],
    cost: Cost,
    source: str,
    rules: tuple[Rule, ...] = (),
    since: int = 2,
    state: State | None = None,
    chooses: Callable[[Instruction], str] | None = None,
) -> Callable[[Callable[..., Any]], InstructionSpec]:
    """Enters the decorated function into the table as an instruction's meaning.

    **Raises:** `ValueError` for a name that the table has, or a meaning that breaks the
    conventions.
    """

    def enter(meaning: Callable[..., Any]) -> InstructionSpec:
        keywords = [
            p for p in inspect.signature(meaning).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        own = [p for p in keywords if p.name not in SUPPLIED]
        spec = InstructionSpec(
            meaning.__name__,
            engines,
            (*operands, *(_index_of(o) for o in operands if o.indirect)),
            meaning,
            cost,
            source,
            rules,
            since,
            tuple(p.name for p in own),
            tuple(p.name for p in own if p.default is p.empty),
            tuple(p.name for p in keywords if p.name in SUPPLIED),
            state,
            chooses,
        )
        if ("state" in spec.supplied) != (state is not None):
            raise ValueError(f"{spec.name}: a meaning takes `state` where the table names one")
        spec.__dict__["__doc__"] = meaning.__doc__
        if TABLE.setdefault(spec.name, spec) is not spec:
            raise ValueError(f"two instructions are called {spec.name}")
        return spec

    return enter


def _index_of(operand: Operand) -> Operand:
    return Operand(
        f"{operand.name}_index", "read", ("sbuf",), INDEX, optional=True, index_of=operand.name
    )
