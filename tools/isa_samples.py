"""One legal instruction of each line of the ISA table, for its documentation page and its tests.

`sample("tensor_copy", 512)` works on 512 elements a partition (where the instruction has such a
size), on a NeuronCore-v4 or, where the table has it, any earlier core.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from jax_trn3.isa import TABLE, Access, Instruction, Register, Tile

SIZES = (64, 128, 256, 512)
"""Elements a partition for which a sample is made."""

_names: Iterator[int] = count()


def _tile(memory: str, shape: tuple[int, ...], dtype: str) -> Access:
    return Tile(f"{memory}{next(_names)}", memory, shape, dtype).all  # type: ignore[arg-type]


def _sbuf(*shape: int, dtype: str = "float32") -> Access:
    return _tile("sbuf", shape, dtype)


def _psum(*shape: int, dtype: str = "float32") -> Access:
    return _tile("psum", shape, dtype)


def _hbm(*shape: int, dtype: str = "float32") -> Access:
    return _tile("hbm", shape, dtype)


def _x(n: int) -> Access:
    return _sbuf(128, n)


def _column(dtype: str = "float32") -> Access:
    return _sbuf(128, 1, dtype=dtype)


def _eight(dtype: str = "float32") -> Access:
    return _sbuf(128, 8, dtype=dtype)


def _unary(n: int, source: str = "data") -> dict[str, Any]:
    """From one tile to another."""
    return {"dst": _x(n), source: _x(n)}


def _mx(n: int) -> dict[str, Any]:
    return {
        "dst": _psum(128, n),
        "stationary": _sbuf(128, 128, dtype="float8_e4m3fn_x4"),
        "moving": _sbuf(128, n, dtype="float8_e4m3fn_x4"),
        "stationary_scale": _sbuf(128, 128, dtype="float8_e8m0fnu"),
        "moving_scale": _sbuf(128, n, dtype="float8_e8m0fnu"),
    }


_REGISTER = Register("i")

SAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "nc_matmul": lambda n: {
        "dst": _psum(128, n),
        "stationary": _sbuf(128, 128, dtype="bfloat16"),
        "moving": _sbuf(128, n, dtype="bfloat16"),
    },
    "nc_matmul_mx": _mx,
    "nc_transpose": lambda n: {"dst": _psum(64, n // 4), "data": _sbuf(n // 4, 64)},
    "activation": lambda n: _unary(n) | {"op": "gelu", "scale": 0.5},
    "activation_reduce": lambda n: (
        _unary(n) | {"reduce_res": _column(), "op": "exp", "reduce_op": "add"}
    ),
    "activate2": lambda n: (
        _unary(n) | {"imm0": 2.0, "imm1": 1.0, "op": "silu", "op0": "multiply", "op1": "subtract"}
    ),
    "tensor_tensor": lambda n: {"dst": _x(n), "data1": _x(n), "data2": _x(n), "op": "add"},
    "tensor_scalar": lambda n: _unary(n) | {"operand0": 2.0, "op0": "multiply"},
    "scalar_tensor_tensor": lambda n: (
        _unary(n) | {"operand0": 2.0, "operand1": _x(n), "op0": "multiply", "op1": "add"}
    ),
    "tensor_scalar_reduce": lambda n: (
        _unary(n)
        | {"operand0": 2.0, "reduce_res": _column(), "op0": "multiply", "reduce_op": "add"}
    ),
    "tensor_scalar_cumulative": lambda n: (
        _unary(n, "src") | {"imm0": 2.0, "op0": "multiply", "op1": "add"}
    ),
    "tensor_tensor_scan": lambda n: (
        _unary(n, "data0") | {"data1": _x(n), "initial": 0.0, "op0": "multiply", "op1": "add"}
    ),
    "tensor_reduce": lambda n: {"dst": _column(), "data": _x(n), "op": "maximum", "axis": 1},
    "tensor_partition_reduce": lambda n: {"dst": _sbuf(1, n), "data": _x(n), "op": "add"},
    "tensor_copy": lambda n: _unary(n, "src"),
    "tensor_copy_predicated": lambda n: (
        _unary(n, "src") | {"predicate": _sbuf(128, n, dtype="uint8")}
    ),
    "select_reduce": lambda n: (
        _unary(n, "on_true") | {"predicate": _sbuf(128, n, dtype="uint8"), "on_false": 0.0}
    ),
    "range_select": lambda n: (
        _unary(n, "on_true_tile")
        | {"bound0": _column(), "bound1": _column(), "reduce_res": _column()}
        | {"comp_op0": "greater_equal", "comp_op1": "less"}
    ),
    "exponential": lambda n: _unary(n, "src"),
    "reciprocal": _unary,
    "quantize_mx": lambda n: {
        "dst": _sbuf(128, n // 4, dtype="float8_e4m3fn_x4"),
        "src": _sbuf(128, n, dtype="bfloat16"),
        "dst_scale": _sbuf(128, n // 4, dtype="uint8"),
    },
    "memset": lambda n: {"dst": _x(n), "value": 0.0},
    "dropout": lambda n: _unary(n) | {"prob": 0.1},
    "bn_stats": lambda n: {"dst": _sbuf(128, 6), "data": _x(n)},
    "bn_aggr": lambda n: {"dst": _sbuf(128, 2), "data": _x(n // 4 * 3)},
    "max8": lambda n: {"dst": _eight(), "src": _x(n)},
    "nc_find_index8": lambda n: {"dst": _eight("uint32"), "data": _x(n), "vals": _eight()},
    "nc_match_replace8": lambda n: _unary(n) | {"vals": _eight(), "imm": 0.0},
    "nc_stream_shuffle": lambda n: (
        _unary(n, "src") | {"shuffle_mask": list(reversed(range(32)))}
    ),
    "iota": lambda n: {"dst": _sbuf(128, n, dtype="int32"), "pattern": [[1, n]]},
    "affine_select": lambda n: (
        _unary(n, "on_true_tile")
        | {"pattern": [[-1, n]], "channel_multiplier": 1}
        | {"on_false_value": -1e30, "cmp_op": "greater_equal"}
    ),
    "local_gather": lambda n: {
        "dst": _x(n), "src_buffer": _x(256), "index": _sbuf(128, n // 16, dtype="uint16"),
    },
    "nc_n_gather": lambda n: {
        "dst": _x(n), "data": _x(256), "indices": _sbuf(128, n, dtype="uint32"),
    },
    "nonzero_with_count": lambda n: {"dst": _sbuf(128, n + 1, dtype="int32"), "src": _x(n)},
    "sequence_bounds": lambda n: {
        "dst": _sbuf(1, 2, n, dtype="int32"), "segment_ids": _sbuf(1, n, dtype="int32"),
    },
    "topk": lambda n: {
        "val_dst": _eight("bfloat16"), "idx_dst": _eight("uint32"),
        "src": _sbuf(128, n, dtype="bfloat16"), "n": 16 * n,
    },
    "rng": lambda n: {"dst": _sbuf(128, n, dtype="uint32")},
    "rand2": lambda n: {"dst": _x(n), "min": 0.0, "max": 1.0},
    "rand_set_state": lambda n: {"src_seeds": _sbuf(128, 6, dtype="uint32")},
    "rand_get_state": lambda n: {"dst": _sbuf(128, 6, dtype="uint32")},
    "set_rng_seed": lambda n: {"src_seeds": _sbuf(1, 1, dtype="uint32")},
    "dma_copy": lambda n: {"dst": _x(n), "src": _hbm(128, n)},
    "dma_transpose": lambda n: {
        "dst": _sbuf(128, n, dtype="bfloat16"), "src": _hbm(n, 128, dtype="bfloat16"),
    },
    "dma_compute": lambda n: {
        "dst": _x(n), "src0": _hbm(128, n), "src1": _hbm(128, n), "reduce_op": "add",
    },
    "sendrecv": lambda n: (
        _unary(n, "src") | {"send_to_rank": 1, "recv_from_rank": 1, "pipe_id": 0}
    ),
    "core_barrier": lambda n: {"data": _hbm(128, n)},
    "register_alloc": lambda n: {"register": _REGISTER, "value": n},
    "register_move": lambda n: {"dst": _REGISTER, "src": n},
    "register_load": lambda n: {"src": _sbuf(1, 1, dtype="int32"), "dst": _REGISTER},
    "register_store": lambda n: {"dst": _sbuf(1, 1, dtype="int32"), "src": _REGISTER},
    "nop": lambda n: {},
    "collective": lambda n: {
        "dst": _hbm(8, n), "src": _hbm(8, n), "kind": "all_reduce", "time_ps": 1_000_000,
        "dma_bytes": 64 * n,
    },
}  # fmt: skip
"""Operands and parameters of a sample, by instruction and size."""


def sample(name: str, size: int = SIZES[-1]) -> Instruction:
    """A legal instruction of that name."""
    return TABLE[name](**SAMPLES[name](size))
