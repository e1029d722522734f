"""Matrix products: dot_general, and the products of trn3's own.

What a good kernel author would do: the operand that costs less as weights is stationary, all of K
of one operand stays in SBUF, transposing loads where the contracted axis is the last one in memory,
elementwise operations on the way out of PSUM.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from jax_trn3.hardware import Chip, NeuronCore
from jax_trn3.isa import Index, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.dtypes import FP8, FP32
from jax_trn3.isa.vector_move import memset
from jax_trn3.simulator import Node, Program, loop

from ..graph import Operation
from ..group import Group, Plan
from . import rule
from .dimensions import Layout, dimension_numbers, layout
from .epilogue import staged_bytes
from .fused import around
from .product import Blocking, Precision, Product, Side
from .product_program import multiply
from .tiles import ROWS, ceil_div, held_as, words

DOTS = ("stablehlo.dot_general", "stablehlo.dot", "trn3.bf16_dot_general")


OTHERS: dict[str, Callable[[Group, Operation, Chip], Plan]] = {}
"""Products of other kinds, by operation: what makes a plan of a group and its product."""


@rule("matmul")
def matmul(group: Group, chip: Chip) -> Plan:
    """A group around one dot_general: the product, and elementwise operations before and after it.

    **Raises:** `ValueError` for a group without a product.
    """
    products = [op for op in group.operations if op.kind in DOTS or op.kind in OTHERS]
    if len(products) != 1:
        raise ValueError(
            f"a group of rule 'matmul' has one of {', '.join((*DOTS, *OTHERS))}; this one has "
            f"{len(products)}"
        )
    (dot,) = products
    if dot.kind in OTHERS:
        return OTHERS[dot.kind](group, dot, chip)
    numbers = dimension_numbers(dot)
    lhs, rhs = dot.operands[:2]
    layouts = tuple(
        layout(x, numbers.contracting[i], numbers.batch[i]) for i, x in enumerate((lhs, rhs))
    )
    how = arithmetic(dot, layouts[0].contracted, chip.core)
    return planned(group, dot, layouts, how, chip)


rule("trn3.bf16_dot_general")(matmul)


@dataclass(frozen=True)
class Arithmetic:
    """How the tensor engine computes a product."""

    precision: Precision
    terms: int = 1
    """Products that make one: of complex numbers, and of parts of wide ones."""

    passes: tuple[int, int] = (0, 0)
    """Elementwise operations on each operand before."""

    lacks: str = ""
    quantized: tuple[bool, bool] = (False, False)
    """Operands that are to be quantized to MX on the way."""

    packed: tuple[bool, bool] = (False, False)
    """Operands that lie in HBM as MX."""

    thin: tuple[int, int] = (1, 1)
    """Elements of each operand's contracted axis for each one that the array is given."""

    def exchanged(self) -> "Arithmetic":
        """With the operands exchanged."""
        return replace(
            self,
            precision=self.precision.swapped(),
            passes=self.passes[::-1],
            quantized=self.quantized[::-1],
            packed=self.packed[::-1],
            thin=self.thin[::-1],
        )


def arithmetic(dot: Operation, contracted: int, core: NeuronCore) -> Arithmetic:
    """Which of the tensor engine's precisions computes a dot_general of these types."""
    types = [x.dtype for x in dot.operands[:2]]
    if dot.kind.startswith("trn3.bf16_") or _algorithm(dot) == "bf16":
        algorithm = dot.attributes.get("algorithm")
        terms = 1
        if isinstance(algorithm, Mapping):
            terms = int(algorithm.get("num_primitive_operations", 1))
        passes = (terms // 3, terms // 3)
        return Arithmetic(Precision("bfloat16", "bfloat16", "bfloat16"), terms, passes)
    if any(t.startswith("complex") for t in types):
        return Arithmetic(
            Precision("float32", "float32", "float32"), 4, (0, 0),
            "complex numbers: four float32 products of the real and imaginary parts",
        )  # fmt: skip
    if "f64" in types:
        return Arithmetic(
            Precision("float32", "float32", "float32"), 6, (3, 3),
            "float64: six float32 products of operands split in three",
        )  # fmt: skip
    if any(t.lstrip("su").startswith("i") or t == "pred" for t in types):
        return _integers(types)
    names = [held_as(t, core) for t in types]
    if any(name in FP32 for name in names):
        kind = "tfloat32" if _algorithm(dot) == "tf32" else "float32"
        return Arithmetic(Precision(kind, kind, kind))
    converted = ""
    for place, (name, t) in enumerate(zip(names, types)):
        if name not in (*FP8, "bfloat16", "float16"):
            converted = f"{t}: converted to bfloat16 before the product"
            names[place] = "bfloat16"
    if all(name in FP8 for name in names):
        if {"float8_e4m3", "float8_e4m3fn"} == set(names):
            names = ["float8_e4m3"] * 2
        if core.generation >= 3 and contracted > 1:
            return Arithmetic(Precision(names[0], names[1], "float8_double_row"))
        return Arithmetic(Precision(names[0], names[1], "float8"))
    return Arithmetic(
        Precision(names[0], names[1], "bfloat16"), 1, (int(bool(converted)),) * 2, converted
    )


def _integers(types: list[str]) -> Arithmetic:
    narrow = all(t.lstrip("su") in ("i1", "i2", "i4", "i8", "pred") for t in types)
    if narrow:
        return Arithmetic(
            Precision("bfloat16", "bfloat16", "bfloat16"), 1, (0, 0),
            "integer products: cast to bfloat16, summed in float32, exact up to 2^24",
        )  # fmt: skip
    return Arithmetic(
        Precision("bfloat16", "bfloat16", "bfloat16"), 10, (4, 4),
        "integer products: ten bfloat16 products of bytes, put together in 32-bit integers",
    )  # fmt: skip


def _algorithm(dot: Operation) -> str:
    """ "tf32" or "bf16" if the program names that algorithm, else ""."""
    text = str(dot.attributes.get("algorithm", "")).lower()
    if "tf32" in text:
        return "tf32"
    if "bf16" in text and dot.operands[0].dtype != "bf16":
        return "bf16"
    return ""


def planned(
    group: Group, dot: Operation, layouts: tuple[Layout, ...], how: Arithmetic, chip: Chip
) -> Plan:
    """The plan of a product with what is fused around it."""
    left, right = layouts
    fused = around(group, dot, chip.core)
    flops = 2 * left.batch * left.free * right.free * left.contracted
    if any(x.dtype.startswith("complex") for x in dot.operands[:2]):
        flops *= 4
    flops += fused.flops
    if not all((left.batch, left.free, right.free, left.contracted)):
        return Plan(Program("a product without elements", tuple(_zeros(group, chip.core))))
    precision = how.precision
    types = (precision.stationary, precision.moving)
    sides = [
        _side(layouts[i], fused.stored[i], types[i], fused.passes[i], how, i, chip.core)
        for i in range(2)
    ]
    k = ceil_div(left.contracted * how.terms, max(how.thin))
    staged = functools.partial(staged_bytes, fused.epilogue)
    product = Product(
        left.batch, k, sides[0], sides[1], precision, fused.epilogue.result, staged=staged
    )
    name = f"{dot.kind.partition('.')[2]} {left.batch}x{left.free}x{left.contracted}x{right.free}"
    program, repeat, blocks = multiply(name, product, chip, fused.epilogue)
    said = [f"{name}: {line}" for line in (*_said(sides, blocks), *fused.assumptions)]
    return Plan(program, repeat, flops, tuple(said), how.lacks)


def _said(sides: list[Side], blocks: Blocking) -> Iterator[str]:
    """What was chosen, a sentence each."""
    yield f"blocks of {blocks.rows} x {blocks.columns} result tiles"
    yield f"the {'right' if blocks.product.turned else 'left'} operand is stationary"
    for which, side in zip(("left", "right"), sides):
        if side.quantized:
            yield f"the {which} operand is quantized to MX once, before, by way of HBM"
        elif side.transposed:
            yield f"the {which} operand is transposed by DMA on its way to SBUF"
        elif side.packed:
            yield f"the {which} operand lies in HBM as the tensor engine reads MX"


def _zeros(group: Group, core: NeuronCore) -> Iterator[Node]:
    """Zeros for results that nothing is summed up for."""
    for number, output in enumerate(group.outputs):
        if not output.size:
            continue
        columns = min(4096, ceil_div(output.size, ROWS))
        dtype = held_as(output.dtype, core)
        zeros = Tile(f"zeros {number}", "sbuf", (min(ROWS, output.size), columns), dtype)
        far = Tile(f"result {number}", "hbm", zeros.shape, dtype)
        yield memset(zeros[0], value=0.0)
        copies = ceil_div(output.size * words(output.dtype), ROWS * columns)
        store = dma_copy(far[0], zeros[0])
        yield loop(copies, functools.partial(_always, store))


def _always(node: Node, _: Index) -> list[Node]:
    return [node]


def _side(
    lay: Layout, stored: str, dtype: str, passes: int, how: Arithmetic, place: int, core: NeuronCore
) -> Side:
    """An operand; one that is transposed and of another type is cast by an engine on the way."""
    free = ceil_div(lay.free, 2) * 2 if how.precision.scaled else lay.free
    if how.packed[place]:
        return Side(free, dtype, free, packed=True)
    held = held_as(stored, core)
    if how.quantized[place]:
        return Side(free, held, min(lay.run, free), lay.transposed, passes, quantized=True)
    passes += how.passes[place]
    if lay.transposed and held != dtype:
        passes = max(1, passes)
    thin = how.thin[place] * lay.thin
    return Side(free, held, lay.run, lay.transposed, passes, thin=thin, reuse=lay.reuse)
