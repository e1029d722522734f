"""What an instruction is: where it runs, what it may work on, what it costs and what it means.

`@instruction(...)` enters a function into `TABLE`. The function's body is the instruction's meaning
in JAX; what the decorator is told are its limits and its price. Calling the result makes an
`Instruction` for a program, as `nki.isa` does: `nc_matmul(dst, stationary, moving)`.
"""

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from jax_trn3.hardware import NeuronCore

from .dtypes import PLAIN
from .operand import Access, Memory

Engine = Literal["tensor", "vector", "scalar", "gpsimd", "sync", "dma", "collective"]


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


def reads(
    name: str, *memories: Memory, dtypes: tuple[str, ...] = PLAIN, **options: bool
) -> Operand:
    """An operand that is read, from SBUF or PSUM unless `memories` says otherwise."""
    return Operand(name, "read", memories or ("sbuf", "psum"), dtypes, **options)


def writes(
    name: str, *memories: Memory, dtypes: tuple[str, ...] = PLAIN, **options: bool
) -> Operand:
    """An operand that is written, in SBUF or PSUM unless `memories` says otherwise."""
    return Operand(name, "write", memories or ("sbuf", "psum"), dtypes, **options)


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
    """Names of the parameters (keyword-only arguments of the meaning)."""

    def __call__(
        self,
        *operands: Access | float | None,
        engine: str | None = None,
        origin: Origin | None = None,
        wait: tuple[tuple[Semaphore, int], ...] = (),
        signal: tuple[tuple[Semaphore, int], ...] = (),
        core: int = 0,
        **named: Any,
    ) -> Instruction:
        """An instruction for a program; operands in the table's order or by name.

        **Raises:** `TypeError` for an operand or parameter that it does not have or that is missing.
        """
        given: dict[str, Any] = dict(zip((o.name for o in self.operands), operands))
        if len(operands) > len(self.operands):
            raise TypeError(f"{self.name} takes {len(self.operands)} operands, not {len(operands)}")
        params = {}
        for name, value in named.items():
            if name in given or name not in (*(o.name for o in self.operands), *self.params):
                known = ", ".join([*(o.name for o in self.operands), *self.params])
                raise TypeError(f"{self.name}: {name!r} is given twice or unknown; it has {known}")
            (params if name in self.params else given)[name] = value
        accesses = []
        for operand in self.operands:
            value = given.get(operand.name)
            if isinstance(value, Access):
                accesses.append((operand.name, value))
            elif value is None and operand.optional:
                continue
            elif operand.scalar and isinstance(value, (int, float)):
                params[operand.name] = value
            else:
                raise TypeError(f"{self.name}: operand {operand.name} cannot be {value!r}")
        return Instruction(
            self.name,
            engine or _default_engine(self.engines[0]),
            tuple(accesses),
            tuple(sorted(params.items())),
            origin or _caller(),
            wait,
            signal,
            core,
        )


def _default_engine(engine: Engine) -> str:
    return "dma:sync" if engine == "dma" else engine


def _caller() -> Origin:
    """The line outside this package that is making an instruction."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno)


TABLE: dict[str, InstructionSpec] = {}
"""Every instruction by name."""


def instruction(
    *operands: Operand,
    engines: tuple[Engine, ...],
    cost: Cost,
    source: str,
    rules: tuple[Rule, ...] = (),
    since: int = 2,
) -> Callable[[Callable[..., Any]], InstructionSpec]:
    """Enters the decorated function into the table as an instruction's meaning."""

    def enter(meaning: Callable[..., Any]) -> InstructionSpec:
        parameters = inspect.signature(meaning).parameters.values()
        params = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        spec = InstructionSpec(
            meaning.__name__, engines, operands, meaning, cost, source, rules, since, params
        )
        spec.__dict__["__doc__"] = meaning.__doc__
        if TABLE.setdefault(spec.name, spec) is not spec:
            raise ValueError(f"two instructions are called {spec.name}")
        return spec

    return enter
