"""Products of trn3's own: microscaling formats, block scales, and N:M sparsity."""

from jax_trn3.hardware import Chip, NeuronCore

from ..graph import Operation
from ..group import Group, Plan
from . import rule
from .dimensions import Layout, dimension_numbers, layout
from .matmul import OTHERS, Arithmetic, planned
from .product import Precision
from .tiles import ceil_div, size

_X4 = {
    "mxfp8_e4m3": "float8_e4m3fn_x4", "f8E4M3FN": "float8_e4m3fn_x4",
    "mxfp8_e5m2": "float8_e5m2_x4", "f8E5M2": "float8_e5m2_x4",
    "mxfp4_e2m1": "float4_e2m1fn_x4", "f4E2M1FN": "float4_e2m1fn_x4",
    # Of six bits every value is one of E4M3.
    "mxfp6_e2m3": "float8_e4m3fn_x4", "f6E2M3FN": "float8_e4m3fn_x4",
    "mxfp6_e3m2": "float8_e4m3fn_x4", "f6E3M2FN": "float8_e4m3fn_x4",
}  # fmt: skip
"""The tensor engine's type for an MX format, by `numerics`' name and by StableHLO's."""

_QUANTIZE_PASSES = 5
"""Magnitudes, the largest of a block, its exponent, the division, the rounding: MX without an
instruction for it."""

_BF16 = Precision("bfloat16", "bfloat16", "bfloat16")
_F32 = Precision("float32", "float32", "float32")


def mx_dot(group: Group, dot: Operation, chip: Chip) -> Plan:
    """trn3.mx_dot_general: operands quantized by VectorE unless they are MX already."""
    numbers = dimension_numbers(dot)
    attributes = dot.attributes
    layouts = tuple(
        layout(x, numbers.contracting[i], numbers.batch[i]) for i, x in enumerate(dot.operands[:2])
    )
    formats = [attributes.get("lhs_format"), attributes.get("rhs_format")]
    packed = (bool(attributes.get("lhs_is_mx")), bool(attributes.get("rhs_is_mx")))
    how = mx_arithmetic(formats, packed, int(attributes.get("block_size", 32)), chip.core)
    return planned(group, dot, layouts, how, chip)


def mx_arithmetic(
    formats: list[str | None], packed: tuple[bool, bool], block: int, core: NeuronCore
) -> Arithmetic:
    held = [_X4.get(f or "") for f in formats]
    left, right = held
    if core.generation >= 4 and block == 32 and left and right:
        lacks = ""
        if any(str(f).startswith("mxfp6") for f in formats):
            lacks = "six-bit MX formats: held as MXFP8"
        fresh = [f for f, is_packed in zip(formats, packed) if not is_packed]
        if any(str(f).startswith("mxfp4") for f in fresh):
            lacks = "quantizing to MXFP4: as quantize_mx to MXFP8, and a pass to pack"
        quantized = (not packed[0], not packed[1])
        return Arithmetic(Precision(left, right, "mx"), 1, (0, 0), lacks, quantized, packed)
    passes = [
        0 if f is None else 1 if is_packed else _QUANTIZE_PASSES
        for f, is_packed in zip(formats, packed)
    ]
    if core.generation < 4:
        why = "MX products before NeuronCore-v4"
    elif block != 32:
        why = f"MX in blocks of {block}"
    else:
        why = "MX products of " + " and ".join(str(f or "unquantized values") for f in formats)
    lacks = f"{why}: values put on their grid by VectorE, then bfloat16 products"
    return Arithmetic(_BF16, 1, (passes[0], passes[1]), lacks)


def scaled_dot(group: Group, dot: Operation, chip: Chip) -> Plan:
    """trn3.scaled_dot: both operands come with scales of blocks."""
    numbers = dimension_numbers(dot)
    lhs, rhs, *scales = dot.operands
    layouts = tuple(
        layout(x, numbers.contracting[i], numbers.batch[i]) for i, x in enumerate((lhs, rhs))
    )
    blocks = {
        ceil_div(size([x.shape[d] for d in dims]), max(1, size([s.shape[d] for d in dims])))
        for x, s, dims in zip((lhs, rhs), scales, numbers.contracting)
    }
    formats = [x.dtype for x in (lhs, rhs)]
    held = [_X4.get(f) for f in formats]
    exponents = all(s.dtype == "f8E8M0FNU" for s in scales)
    if chip.core.generation >= 4 and exponents and blocks == {32} and held[0] and held[1]:
        how = Arithmetic(Precision(held[0], held[1], "mx"), packed=(True, True))
    elif exponents and all(f.startswith(("f8", "f4", "f6")) for f in formats):
        lacks = f"block scales of {sorted(blocks)} values: multiplied in, then bfloat16 products"
        how = Arithmetic(_BF16, 1, (1, 1), lacks)
    else:
        how = Arithmetic(
            _F32, 1, (1, 1), "block scales that are no powers of two: multiplied in, in float32"
        )
    return planned(group, dot, layouts, how, chip)


def sparse_dot(group: Group, dot: Operation, chip: Chip) -> Plan:
    """trn3.sparse_dot_general: the array is given the values that are kept."""
    numbers = dimension_numbers(dot)
    dense, values = dot.operands[:2]
    side = 0 if dot.attributes.get("sparse_operand") == "lhs" else 1
    axis = int(dot.attributes["axis"]) + len(values.shape)
    kept, of = (int(n) for n in str(dot.attributes["pattern"]).split(":"))
    full = list(values.shape)
    full[axis] = int(dot.attributes["size"])
    shapes = [dense.shape, tuple(full)] if side else [tuple(full), dense.shape]
    tensors = [dense, values] if side else [values, dense]
    layouts: tuple[Layout, ...] = tuple(
        layout(type(x)(x.id, shape, x.dtype), numbers.contracting[i], numbers.batch[i])
        for i, (x, shape) in enumerate(zip(tensors, shapes))
    )
    ordered = Operation(dot.kind, (*tensors, *dot.operands[2:]), dot.results, dot.attributes)
    operations = tuple(ordered if op is dot else op for op in group.operations)
    group = Group(group.rule, operations, group.inputs, group.outputs)
    rate = min(of // kept, int(chip.core.tensor.depth.get("sparse", 1)))
    narrow = all(x.dtype in ("bf16", "f16") or x.dtype.startswith("f8") for x in tensors)
    if rate > 1 and narrow:
        thin = (1, rate) if side == 0 else (rate, 1)
        lacks = (
            "an instruction for sparse products in nki.isa: timed as bfloat16 products of the "
            "values that are kept, at the published rate"
        )
        how = Arithmetic(_BF16, 1, (0, 0), lacks, thin=thin)
    else:
        wide = any(x.dtype == "f32" for x in tensors)
        passes = (2, 0) if side == 0 else (0, 2)
        lacks = f"{of - kept} of {of} sparse products of these types: unpacked, dense products"
        how = Arithmetic(_F32 if wide else _BF16, 1, passes, lacks)
    return planned(group, ordered, layouts, how, chip)


for _name, _function in {
    "trn3.mx_dot_general": mx_dot,
    "trn3.scaled_dot": scaled_dot,
    "trn3.sparse_dot_general": sparse_dot,
}.items():
    OTHERS[_name] = _function


@rule("trn3.mx_dot_general")
@rule("trn3.scaled_dot")
@rule("trn3.sparse_dot_general")
def product_of_our_own(group: Group, chip: Chip) -> Plan:
    """One of trn3's own products, with what is fused behind it."""
    dot = next(op for op in group.operations if op.kind in OTHERS)
    return OTHERS[dot.kind](group, dot, chip)
