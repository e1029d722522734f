"""What kind of work each operation is: which fuse, which move, which the hardware lacks.

Every operation of StableHLO and CHLO is in exactly one of these tables (a test holds it).
"""

from .graph import Operation

FREE = {
    "stablehlo.constant": "its numbers lie in HBM or in the instruction",
    "chlo.constant": "its numbers lie in HBM or in the instruction",
    "chlo.constant_like": "a number in the instruction",
    "stablehlo.reshape": "the same bytes in the same order",
    "stablehlo.dynamic_reshape": "the same bytes in the same order",
    "stablehlo.bitcast_convert": "the same bytes in the same order",
    "stablehlo.optimization_barrier": "an order, which a queue has anyway",
    "stablehlo.tuple": "names for values",
    "stablehlo.get_tuple_element": "names for values",
    "stablehlo.return": "the end of a body",
    "stablehlo.after_all": "an order, which a queue has anyway",
    "stablehlo.create_token": "an order, which a queue has anyway",
    "stablehlo.partition_id": "a number known when the program is loaded",
    "stablehlo.replica_id": "a number known when the program is loaded",
    "stablehlo.get_dimension_size": "shapes are static: a number known to the compiler",
    "stablehlo.set_dimension_size": "shapes are static: nothing moves",
    "sdy.sharding_constraint": "a wish of the partitioner's",
    "sdy.reshard": "carried out by the collectives around it",
    "sdy.propagation_barrier": "a wish of the partitioner's",
    "sdy.return": "the end of a body",
    "func.return": "the end of a body",
}
"""Operations that cost nothing by definition, and why."""

VIEWS = {
    "stablehlo.broadcast_in_dim": "read again and again by what uses it",
    "stablehlo.broadcast": "read again and again by what uses it",
    "stablehlo.dynamic_broadcast_in_dim": "read again and again by what uses it",
    "stablehlo.iota": "made where it is used",
    "stablehlo.dynamic_iota": "made where it is used",
    "stablehlo.slice": "a part read from where it lies, if its runs are long",
    "stablehlo.dynamic_slice": "a part read from where it lies, if its runs are long",
}
"""Operations that engines read through; written to HBM only for a reader that cannot."""

CONTROL_FLOW = {
    "stablehlo.while", "stablehlo.case", "stablehlo.if", "stablehlo.async_start",
    "stablehlo.async_done", "stablehlo.composite", "func.call", "sdy.manual_computation",
    "sdy.named_computation",
}  # fmt: skip

COLLECTIVES = {
    "stablehlo.all_gather", "stablehlo.all_reduce", "stablehlo.all_to_all",
    "stablehlo.collective_broadcast", "stablehlo.collective_permute", "stablehlo.collective_reduce",
    "stablehlo.reduce_scatter",
    "stablehlo.cross-replica-sum", "stablehlo.send", "stablehlo.recv",
}  # fmt: skip

DOTS = {
    "stablehlo.dot_general", "stablehlo.dot", "stablehlo.convolution", "stablehlo.dynamic_conv",
    "stablehlo.einsum", "stablehlo.unary_einsum", "chlo.ragged_dot", "mx_dot", "trn3.mx_dot",
    "trn3.mx_dot_general",
}  # fmt: skip

_UNARY = (
    "abs ceil cbrt convert cosine count_leading_zeros exponential exponential_minus_one floor imag "
    "is_finite log log_plus_one logistic negate not popcnt real reduce_precision round_nearest_afz "
    "round_nearest_even rsqrt sign sine sqrt tan tanh uniform_dequantize uniform_quantize"
)
_BINARY = (
    "add and atan2 compare complex divide maximum minimum multiply or power remainder shift_left "
    "shift_right_arithmetic shift_right_logical subtract xor"
)
_CHLO = (
    "_asin_acos_kernel acos acosh asin asinh atan atanh bessel_i1e conj cosh digamma erf erf_inv "
    "erfc is_inf is_neg_inf is_pos_inf lgamma mulhi next_after polygamma sinh square tan zeta "
    "broadcast_add broadcast_and broadcast_atan2 broadcast_compare broadcast_complex "
    "broadcast_divide broadcast_maximum broadcast_minimum broadcast_multiply broadcast_next_after "
    "broadcast_or broadcast_polygamma broadcast_power broadcast_remainder broadcast_select "
    "broadcast_shift_left broadcast_shift_right_arithmetic broadcast_shift_right_logical "
    "broadcast_subtract broadcast_xor broadcast_zeta"
)
ELEMENTWISE = {
    *(f"stablehlo.{name}" for name in (*_UNARY.split(), *_BINARY.split(), "select", "clamp")),
    *(f"chlo.{name}" for name in _CHLO.split()),
}
"""One result element of one element of each operand, or of a broadcast one."""

RULE_OF = {
    "stablehlo.transpose": "transpose",
    "stablehlo.slice": "copy",
    "stablehlo.dynamic_slice": "copy",
    "stablehlo.real_dynamic_slice": "copy",
    "stablehlo.pad": "copy",
    "stablehlo.dynamic_pad": "copy",
    "stablehlo.concatenate": "copy",
    "stablehlo.reverse": "reverse",
    "stablehlo.dynamic_update_slice": "update_slice",
    "stablehlo.gather": "gather",
    "stablehlo.dynamic_gather": "gather",
    "stablehlo.torch_index_select": "gather",
    "stablehlo.scatter": "scatter",
    "stablehlo.select_and_scatter": "reduce_window",
    "stablehlo.reduce_window": "reduce_window",
    "chlo.scan": "scan",
    "stablehlo.reduce": "rows",
    "stablehlo.map": "rows",
    "stablehlo.batch_norm_grad": "batch_norm",
    "stablehlo.batch_norm_inference": "batch_norm",
    "stablehlo.batch_norm_training": "batch_norm",
    "stablehlo.sort": "sort",
    "chlo.top_k": "top_k",
    "stablehlo.rng": "random",
    "stablehlo.rng_bit_generator": "random",
    "stablehlo.fft": "fft",
    "stablehlo.cholesky": "linear_algebra",
    "stablehlo.triangular_solve": "linear_algebra",
    "stablehlo.infeed": "host",
    "stablehlo.outfeed": "host",
    "stablehlo.custom_call": "other",
}
"""The rule of an operation that is a group of its own."""


def stays_whole(operation: Operation) -> bool:
    """Whether an operation is not ours to group: control flow, collectives, kernels."""
    kind = operation.kind
    if kind in DOTS:
        return False
    room = kind.partition(".")[0]
    return kind in CONTROL_FLOW or kind in COLLECTIVES or room in ("sdy", "trn3", "kernel")


def is_elementwise(operation: Operation) -> bool:
    """Whether it works element by element."""
    return operation.kind in ELEMENTWISE


def is_epilogue(operation: Operation, elements: int) -> bool:
    """Whether a matmul of `elements` results can do this on the way out of PSUM: what one
    instruction of VectorE, ScalarE or GpSimdE does, on as many elements."""
    return operation.kind in _EPILOGUE and operation.results[0].size == elements


_EPILOGUE = {
    *(
        f"stablehlo.{name}"
        for name in (
            "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "convert",
            "select", "compare", "exponential", "logistic", "tanh", "rsqrt", "sqrt", "abs", "sign",
            "clamp", "and", "or", "not", "reduce_precision",
        )
    ),
    "chlo.erf", "chlo.square", "chlo.erfc",
}  # fmt: skip


def rule_of(operation: Operation) -> str:
    """The name of the rule for an operation that is alone."""
    kind = operation.kind
    if kind in DOTS:
        return "matmul"
    if kind in ELEMENTWISE or (kind in VIEWS and kind not in RULE_OF):
        return "rows"
    if kind.startswith("custom_call:"):
        return custom_call_rule(kind.partition(":")[2])
    return RULE_OF.get(kind, "other")


_LINEAR_ALGEBRA = (
    "lapack_", "cholesky", "qr", "householder", "eigh", "eig", "svd", "schur", "hessenberg",
    "tridiagonal", "lu_pivots", "triangular",
)  # fmt: skip
_HOST = ("callback", "host", "infeed", "outfeed")


def custom_call_rule(target: str) -> str:
    """The rule of a custom call by its target."""
    target = target.lower()
    if any(word in target for word in _HOST):
        return "host"
    if "topk" in target or "top_k" in target:
        return "top_k"
    if "fft" in target:
        return "fft"
    if "threefry" in target or "rng" in target:
        return "random"
    if any(word in target for word in _LINEAR_ALGEBRA):
        return "linear_algebra"
    return "other"
