"""Elementwise operations as steps of the engines: what one takes, and what several take together.

A recipe is a list of steps `(name, operand, ...)`. An operand is a number (a float), an operand of
the operation (0, 1, 2) or the result of a step before (-1 the last one). Names are NKI's: functions
of ScalarE (`ACTIVATIONS`) and operations of the ALU (`ALU_OPS`); beside them "select", "convert"
and "round", a copy to integers and back.
"""

from ..graph import Operation

Step = tuple[object, ...]
Recipe = tuple[Step, ...]

_COMPARISONS = {
    "EQ": "equal", "NE": "not_equal", "LT": "less", "LE": "less_equal", "GT": "greater",
    "GE": "greater_equal",
}  # fmt: skip

_TURN = 0.15915494  # 1 / (2 pi)


def _polynomial(degree: int, of: int = 0) -> Recipe:
    """Horner's rule: a sum with a number and a product for each degree."""
    steps: list[Step] = [("multiply", of, 1.5)]
    for _ in range(degree - 1):
        steps += [("add", -1, 0.5), ("multiply", -1, of)]
    return (*steps, ("add", -1, 0.5))


def _reduced_sine(shift: float) -> Recipe:
    """ScalarE's sine is valid in [-pi, pi]: the turns before are taken off."""
    return (
        ("multiply", 0, _TURN), ("add", -1, shift), ("round", -1), ("subtract", -2, -1),
        ("multiply", -1, 6.2831855), ("sin", -1),
    )  # fmt: skip


_FLOOR: Recipe = (("round", 0), ("greater", -1, 0), ("subtract", -2, -1))
_ATAN: Recipe = (
    ("abs", 0), ("reciprocal", -1), ("minimum", -1, -2), ("arctan", -1), ("greater", -4, 1.0),
    ("multiply", -2, -1), ("sign", 0), ("multiply", -2, -1),
)  # fmt: skip
_ASIN: Recipe = (
    ("multiply", 0, 0), ("multiply", -1, -1.0), ("add", -1, 1.0), ("sqrt", -1), ("reciprocal", -1),
    ("multiply", -1, 0), *((name, *[o if o else -1 for o in ops]) for name, *ops in _ATAN[:1]),
    *_ATAN[1:-2], ("sign", 0), ("multiply", -2, -1),
)  # fmt: skip
_HYPERBOLIC: Recipe = (("exp", 0), ("reciprocal", -1), ("add", -1, -2), ("multiply", -1, 0.5))
_AREA: Recipe = (
    ("multiply", 0, 0), ("add", -1, 1.0), ("sqrt", -1), ("add", -1, 0), ("log", -1),
)  # fmt: skip
_POWER: Recipe = (("log", 0), ("multiply", -1, 1), ("exp", -1))
_REMAINDER: Recipe = (
    ("reciprocal", 1), ("multiply", 0, -1), ("round", -1), ("multiply", -1, 1), ("subtract", 0, -1),
)  # fmt: skip
_GAMMA: Recipe = (*_polynomial(8), ("reciprocal", -1), ("log", -1), ("multiply", -1, 0))
_BITS: Recipe = tuple(
    step
    for shift in (1, 2, 4, 8, 16)
    for step in (
        ("right_shift", 0 if shift == 1 else -1, float(shift)),
        ("bitwise_and", -1, 85.0),
        ("add", -1, -2),
    )
)

RECIPES: dict[str, Recipe] = {
    **{
        f"stablehlo.{name}": ((op, 0, 1),)
        for name, op in (
            ("add", "add"), ("subtract", "subtract"), ("multiply", "multiply"),
            ("maximum", "maximum"), ("minimum", "minimum"), ("and", "bitwise_and"),
            ("or", "bitwise_or"), ("xor", "bitwise_xor"), ("shift_left", "left_shift"),
            ("shift_right_logical", "right_shift"),
        )
    },
    **{
        f"stablehlo.{name}": ((op, 0),)
        for name, op in (
            ("abs", "abs"), ("exponential", "exp"), ("log", "log"), ("logistic", "sigmoid"),
            ("rsqrt", "rsqrt"), ("sign", "sign"), ("sqrt", "sqrt"), ("tanh", "tanh"),
            ("round_nearest_even", "round"), ("convert", "convert"),
            ("reduce_precision", "convert"), ("real", "convert"), ("imag", "convert"),
        )
    },
    "stablehlo.shift_right_arithmetic": (
        ("right_shift", 0, 1), ("less", 0, 0.0), ("bitwise_or", -2, -1),
    ),
    "stablehlo.divide": (("reciprocal", 1), ("multiply", 0, -1)),
    "stablehlo.select": (("select", 0, 1, 2),),
    "stablehlo.clamp": (("maximum", 1, 0), ("minimum", -1, 2)),
    "stablehlo.compare": (("equal", 0, 1),),
    "stablehlo.negate": (("multiply", 0, -1.0),),
    "stablehlo.not": (("bitwise_xor", 0, 1.0),),
    "stablehlo.is_finite": (("abs", 0), ("less", -1, 3e38)),
    "stablehlo.exponential_minus_one": (("exp", 0), ("add", -1, -1.0)),
    "stablehlo.log_plus_one": (("add", 0, 1.0), ("log", -1)),
    "stablehlo.sine": _reduced_sine(0.0),
    "stablehlo.cosine": _reduced_sine(0.25),
    "stablehlo.tan": (
        *_reduced_sine(0.0), *_reduced_sine(0.25), ("reciprocal", -1), ("multiply", -1, -8),
    ),
    "stablehlo.cbrt": (
        ("abs", 0), ("log", -1), ("multiply", -1, 1 / 3), ("exp", -1), ("sign", 0),
        ("multiply", -1, -2),
    ),
    "stablehlo.power": _POWER,
    "stablehlo.floor": _FLOOR,
    "stablehlo.ceil": _FLOOR,
    "stablehlo.round_nearest_afz": (("sign", 0), ("multiply", -1, 0.5), ("add", 0, -1), *_FLOOR),
    "stablehlo.remainder": _REMAINDER,
    "stablehlo.atan2": (("reciprocal", 1), ("multiply", 0, -1), *_ATAN, ("less", 1, 0.0),
                        ("multiply", -1, 3.1415927), ("add", -1, -3)),
    "stablehlo.complex": (("convert", 0), ("convert", 1)),
    "stablehlo.popcnt": _BITS,
    "stablehlo.count_leading_zeros": (
        *(s for n in (1, 2, 4, 8, 16) for s in (("right_shift", 0 if n == 1 else -1, float(n)),
                                               ("bitwise_or", -1, 0))),
        *_BITS,
    ),
    "stablehlo.uniform_quantize": (("multiply", 0, 8.0), ("add", -1, 0.5), ("round", -1),
                                   ("maximum", -1, -128.0), ("minimum", -1, 127.0)),
    "stablehlo.uniform_dequantize": (("add", 0, 0.5), ("multiply", -1, 0.125)),
    "chlo.erf": (("erf", 0),),
    "chlo.erfc": (("erf", 0), ("multiply", -1, -1.0), ("add", -1, 1.0)),
    "chlo.square": (("square", 0),),
    "chlo.conj": (("multiply", 0, -1.0),),
    "chlo.tan": (
        *_reduced_sine(0.0), *_reduced_sine(0.25), ("reciprocal", -1), ("multiply", -1, -8),
    ),
    "chlo.sinh": _HYPERBOLIC,
    "chlo.cosh": _HYPERBOLIC,
    "chlo.asinh": _AREA,
    "chlo.acosh": _AREA,
    "chlo.atanh": (
        ("add", 0, 1.0), ("multiply", 0, -1.0), ("add", -1, 1.0), ("reciprocal", -1),
        ("multiply", -1, -4), ("log", -1), ("multiply", -1, 0.5),
    ),
    "chlo.atan": _ATAN,
    "chlo.asin": _ASIN,
    "chlo.acos": (*_ASIN, ("multiply", -1, -1.0), ("add", -1, 1.5707964)),
    "chlo._asin_acos_kernel": _ASIN,
    "chlo.is_inf": (("abs", 0), ("equal", -1, 3e38)),
    "chlo.is_pos_inf": (("equal", 0, 3e38),),
    "chlo.is_neg_inf": (("equal", 0, -3e38),),
    "chlo.erf_inv": (
        ("multiply", 0, 0), ("multiply", -1, -1.0), ("add", -1, 1.0), ("log", -1),
        *_polynomial(9), ("sqrt", -1), *_polynomial(9), ("less", 0, 0.5), ("multiply", -1, -2),
    ),
    "chlo.lgamma": _GAMMA,
    "chlo.digamma": _GAMMA,
    "chlo.polygamma": (*_GAMMA, *_polynomial(24), ("multiply", -1, 1)),
    "chlo.zeta": (*_POWER, *_polynomial(24), ("multiply", -1, 1)),
    "chlo.bessel_i1e": (
        *_polynomial(17), ("sqrt", 0), ("reciprocal", -1), *_polynomial(25), ("multiply", -1, 0),
    ),
    "chlo.next_after": (
        ("equal", 0, 1), ("greater", 0, 1), ("add", -1, -2), ("add", 0, -1), ("equal", 0, 0.0),
        ("add", -1, -2),
    ),
    "chlo.mulhi": (
        ("right_shift", 0, 16.0), ("right_shift", 1, 16.0), ("multiply", -1, -2),
        ("multiply", 0, -2), ("right_shift", -1, 16.0), ("add", -1, -3),
    ),
}  # fmt: skip
"""Steps of each elementwise operation."""


def recipe(operation: Operation, numbers: tuple[bool, ...] = ()) -> Recipe:
    """The steps of an operation. `numbers` says which of its operands are numbers."""
    kind = operation.kind
    if kind.startswith("chlo.broadcast_"):
        name = kind.removeprefix("chlo.broadcast_")
        kind = next(k for k in (f"stablehlo.{name}", f"chlo.{name}") if k in RECIPES)
    if kind == "stablehlo.compare":
        direction = str(operation.attributes.get("comparison_direction", "EQ")).split()[-1]
        return ((_COMPARISONS.get(direction.strip("#<>"), "equal"), 0, 1),)
    if kind == "stablehlo.power" and len(numbers) > 1 and numbers[1]:
        return (("power", 0, 1),)
    if kind == "stablehlo.divide" and len(numbers) > 1 and numbers[1]:
        return (("multiply", 0, 1),)
    return RECIPES[kind]
