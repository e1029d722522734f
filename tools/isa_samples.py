"""One legal instruction of each line of the ISA table, for its documentation page and its tests.

`sample("tensor_copy", 512)` works on 512 elements a partition (where the instruction has such a
size), on a NeuronCore-v4 or, where the table has it, any earlier core.
"""

from collections.abc import Callable, Iterator
from itertools import count

from jax_trn3 import isa
from jax_trn3.isa import Access, Instruction, Register, Tile

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


def _mx(n: int) -> dict[str, Access]:
    return {
        "dst": _psum(128, n),
        "stationary": _sbuf(128, 128, dtype="float8_e4m3fn_x4"),
        "moving": _sbuf(128, n, dtype="float8_e4m3fn_x4"),
        "stationary_scale": _sbuf(128, 128, dtype="float8_e8m0fnu"),
        "moving_scale": _sbuf(128, n, dtype="float8_e8m0fnu"),
    }


def _matmul(n: int) -> Instruction:
    a, b = (_sbuf(128, f, dtype="bfloat16") for f in (128, n))
    return isa.tensor.nc_matmul(_psum(128, n), a, b)


_REGISTER = Register("i")
_PATTERN = {"channel_multiplier": 1}
_T, _V, _VM, _VR, _VS = (
    isa.tensor,
    isa.vector,
    isa.vector_move,
    isa.vector_reduce,
    isa.vector_search,
)
_S, _G, _D, _R, _Y = isa.scalar, isa.gpsimd, isa.dma, isa.random, isa.sync

SAMPLES: dict[str, Callable[[int], Instruction]] = {
    "nc_matmul": _matmul,
    "nc_matmul_mx": lambda n: _T.nc_matmul_mx(**_mx(n)),
    "nc_transpose": lambda n: _T.nc_transpose(_psum(64, n // 4), _sbuf(n // 4, 64)),
    "activation": lambda n: _S.activation(_x(n), _x(n), op="gelu", scale=0.5),
    "activation_reduce": lambda n: _S.activation_reduce(
        _x(n), _x(n), _column(), op="exp", reduce_op="add"
    ),
    "activate2": lambda n: _S.activate2(
        _x(n), _x(n), 2.0, 1.0, op="silu", op0="multiply", op1="subtract"
    ),
    "tensor_tensor": lambda n: _V.tensor_tensor(_x(n), _x(n), _x(n), op="add"),
    "tensor_scalar": lambda n: _V.tensor_scalar(_x(n), _x(n), 2.0, op0="multiply"),
    "scalar_tensor_tensor": lambda n: _V.scalar_tensor_tensor(
        _x(n), _x(n), 2.0, _x(n), op0="multiply", op1="add"
    ),
    "tensor_scalar_reduce": lambda n: _VR.tensor_scalar_reduce(
        _x(n), _x(n), 2.0, _column(), op0="multiply", reduce_op="add"
    ),
    "tensor_scalar_cumulative": lambda n: _VR.tensor_scalar_cumulative(
        _x(n), _x(n), 2.0, op0="multiply", op1="add"
    ),
    "tensor_tensor_scan": lambda n: _V.tensor_tensor_scan(
        _x(n), _x(n), _x(n), 0.0, op0="multiply", op1="add"
    ),
    "tensor_reduce": lambda n: _VR.tensor_reduce(_column(), _x(n), op="maximum", axis=1),
    "tensor_partition_reduce": lambda n: _G.tensor_partition_reduce(_sbuf(1, n), _x(n), op="add"),
    "tensor_copy": lambda n: _VM.tensor_copy(_x(n), _x(n)),
    "tensor_copy_predicated": lambda n: _VM.tensor_copy_predicated(
        _x(n), _x(n), _sbuf(128, n, dtype="uint8")
    ),
    "select_reduce": lambda n: _VR.select_reduce(_x(n), _sbuf(128, n, dtype="uint8"), _x(n), 0.0),
    "range_select": lambda n: _VR.range_select(
        _x(n), _x(n), _column(), _column(), _column(), comp_op0="greater_equal", comp_op1="less"
    ),
    "exponential": lambda n: _VR.exponential(_x(n), _x(n)),
    "reciprocal": lambda n: _V.reciprocal(_x(n), _x(n)),
    "quantize_mx": lambda n: _V.quantize_mx(
        _sbuf(128, n // 4, dtype="float8_e4m3fn_x4"),
        _sbuf(128, n, dtype="bfloat16"),
        _sbuf(128, n // 4, dtype="uint8"),
    ),
    "memset": lambda n: _VM.memset(_x(n), value=0.0),
    "dropout": lambda n: _VM.dropout(_x(n), _x(n), 0.1),
    "bn_stats": lambda n: _VR.bn_stats(_sbuf(128, 6), _x(n)),
    "bn_aggr": lambda n: _VR.bn_aggr(_sbuf(128, 2), _x(n // 4 * 3)),
    "max8": lambda n: _VS.max8(_eight(), _x(n)),
    "nc_find_index8": lambda n: _VS.nc_find_index8(_eight("uint32"), _x(n), _eight()),
    "nc_match_replace8": lambda n: _VS.nc_match_replace8(_x(n), _x(n), _eight(), imm=0.0),
    "nc_stream_shuffle": lambda n: _VM.nc_stream_shuffle(
        _x(n), _x(n), shuffle_mask=list(range(31, -1, -1))
    ),
    "iota": lambda n: _G.iota(_sbuf(128, n, dtype="int32"), pattern=[[1, n]], **_PATTERN),
    "affine_select": lambda n: _G.affine_select(
        _x(n), _x(n), pattern=[[-1, n]], on_false_value=-1e30, cmp_op="greater_equal", **_PATTERN
    ),
    "local_gather": lambda n: _G.local_gather(_x(n), _x(256), _sbuf(128, n // 16, dtype="uint16")),
    "nc_n_gather": lambda n: _G.nc_n_gather(_x(n), _x(256), _sbuf(128, n, dtype="uint32")),
    "nonzero_with_count": lambda n: _G.nonzero_with_count(_sbuf(128, n + 1, dtype="int32"), _x(n)),
    "sequence_bounds": lambda n: _G.sequence_bounds(
        _sbuf(1, 2, n, dtype="int32"), _sbuf(1, n, dtype="int32")
    ),
    "topk": lambda n: _G.topk(
        _eight("bfloat16"), _eight("uint32"), _sbuf(128, n, dtype="bfloat16"), n=16 * n
    ),
    "rng": lambda n: _R.rng(_sbuf(128, n, dtype="uint32")),
    "rand2": lambda n: _R.rand2(_x(n), 0.0, 1.0),
    "rand_set_state": lambda n: _R.rand_set_state(_sbuf(128, 6, dtype="uint32")),
    "rand_get_state": lambda n: _R.rand_get_state(_sbuf(128, 6, dtype="uint32")),
    "set_rng_seed": lambda n: _R.set_rng_seed(_sbuf(1, 1, dtype="uint32")),
    "dma_copy": lambda n: _D.dma_copy(_x(n), _hbm(128, n)),
    "dma_transpose": lambda n: _D.dma_transpose(
        _sbuf(128, n, dtype="bfloat16"), _hbm(n, 128, dtype="bfloat16")
    ),
    "dma_compute": lambda n: _D.dma_compute(_x(n), _hbm(128, n), _hbm(128, n), reduce_op="add"),
    "sendrecv": lambda n: _D.sendrecv(_x(n), _x(n), send_to_rank=1, recv_from_rank=1, pipe_id=0),
    "core_barrier": lambda n: _Y.core_barrier(_hbm(128, n)),
    "register_alloc": lambda n: _Y.register_alloc(register=_REGISTER, value=n),
    "register_move": lambda n: _Y.register_move(dst=_REGISTER, src=n),
    "register_load": lambda n: _Y.register_load(_sbuf(1, 1, dtype="int32"), dst=_REGISTER),
    "register_store": lambda n: _Y.register_store(_sbuf(1, 1, dtype="int32"), src=_REGISTER),
    "nop": lambda n: _Y.nop(),
}
"""How to make a sample of a size, by instruction."""


def sample(name: str, size: int = SIZES[-1]) -> Instruction:
    """A legal instruction of that name."""
    return SAMPLES[name](size)
