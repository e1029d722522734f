"""The selective state-space layer of AWS's tutorial "Fused Mamba", versions 1 and 2.

For each of 16 states and each 128 channels: exp(delta * A) on ScalarE; delta * u * B, a scan over
the sequence, times C and a sum over the states on VectorE. B and C, one row each, are broadcast to
all partitions by a product with ones on TensorE and read from PSUM, which spares VectorE half the
time of an operation on two tiles (costs of SDK 2.26: N with one operand in PSUM, 2 N without).

Assumed: the broadcasts stay in PSUM; loads on SyncE's queue, double-buffered; in version 2 the
compiler takes delta * u, which no state changes, out of the loop over states.
"""

from jax_trn3.hardware import TRAINIUM1
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import tensor_tensor, tensor_tensor_scan
from jax_trn3.isa.vector_move import memset
from jax_trn3.simulator import Program, loop, program

from .row import Row, engine_share, total_us

_SOURCE = "nki/guides/tutorials/fused_mamba.rst"
_LENGTH = 512
_STATES = 16


def _tile(name: str, width: int = _LENGTH, slots: int = 2, rows: int = 128) -> Tile:
    return Tile(name, "sbuf", (rows, width), "float32", slots=slots)


class _Buffers:
    """Tiles of both versions."""

    def __init__(self) -> None:
        def given(name: str, rows: int, width: int) -> Tile:
            return Tile(name, "hbm", (rows, width), "float32", given=True)

        self.hbm = {name: given(name, 128, _LENGTH) for name in ("delta", "u")}
        self.hbm |= {name: given(name, 1, _LENGTH) for name in ("B", "C")}
        self.hbm["A"] = given("A", 128, _STATES)
        self.out = Tile("out", "hbm", (128, _LENGTH), "float32", slots=8)
        self.delta, self.u, self.decay, self.du = map(_tile, ("delta", "u", "exp", "delta u"))
        self.dbu, self.scanned, self.weighted = map(_tile, ("delta B u", "scan", "scan C"))
        self.a = _tile("A", 1)
        self.row = {name: _tile(name, rows=1) for name in ("B", "C")}
        self.wide = {
            name: Tile(f"{name} everywhere", "psum", (128, _LENGTH), "float32", slots=2)
            for name in ("B", "C")
        }
        self.ones = _tile("ones", 128, 1, rows=1)

    def load_channels(self, at: Index) -> list[Instruction]:
        """delta and u of 128 channels."""
        return [
            dma_copy(self.delta[at], self.hbm["delta"][0]),
            dma_copy(self.u[at], self.hbm["u"][0]),
        ]

    def load_state(self, at: Index) -> list[Instruction]:
        """A of 128 channels; B and C, broadcast."""
        nodes = [dma_copy(self.a[at], self.hbm["A"][:, 0:1])]
        for name, row in self.row.items():
            nodes.append(dma_copy(row[at], self.hbm[name][0]))
            nodes.append(nc_matmul(self.wide[name][at], self.ones, row[at], accumulate=False))
        return nodes

    def step(self, channels: Index, at: Index, total: Access) -> list[Instruction]:
        """One state of 128 channels, delta * u being known."""
        return [
            activation(self.decay[at], self.delta[channels], scale=self.a[at], op="exp"),
            tensor_tensor(self.dbu[at], self.du[channels], self.wide["B"][at], op="multiply"),
            tensor_tensor_scan(
                self.scanned[at], self.decay[at], self.dbu[at], 0.0, op0="multiply", op1="add"
            ),
            tensor_tensor(self.weighted[at], self.scanned[at], self.wide["C"][at], op="multiply"),
            tensor_tensor(total, total, self.weighted[at], op="add"),
        ]

    def product(self, at: Index) -> Instruction:
        """delta * u."""
        return tensor_tensor(self.du[at], self.delta[at], self.u[at], op="multiply")


def mamba_v1(channels: int) -> Program:
    """Loop over states outside, over channels inside: delta and u are loaded for every state."""
    tiles = channels // 128
    b = _Buffers()
    totals = _tile("sum", slots=tiles)

    def state(s: Index):
        def group(c: Index):
            at = s * tiles + c
            loads = [*b.load_channels(at), *b.load_state(at)]
            return [*loads, b.product(at), *b.step(at, at, totals[c])]

        return [loop(tiles, group)]

    zeros = loop(tiles, lambda c: [memset(totals[c], value=0.0)])
    stores = loop(tiles, lambda c: [dma_copy(b.out[c], totals[c], engine="dma:scalar")])
    ones = memset(b.ones, value=1.0)
    return program(f"mamba 1, {channels} channels", [ones, zeros, loop(_STATES, state), stores])


def mamba_v2(channels: int) -> Program:
    """Loop over channels outside, over states inside."""
    b = _Buffers()
    totals = _tile("sum")

    def group(c: Index):
        def state(s: Index):
            at = c * _STATES + s
            return [*b.load_state(at), *b.step(c, at, totals[c])]

        return [
            memset(totals[c], value=0.0, engine="gpsimd"),
            *b.load_channels(c),
            b.product(c),
            loop(_STATES, state),
            dma_copy(b.out[c], totals[c], engine="dma:scalar"),
        ]

    ones = memset(b.ones, value=1.0)
    return program(f"mamba 2, {channels} channels", [ones, loop(channels // 128, group)])


ROWS = (
    Row(
        "C7 256",
        "mamba 1, 256 channels",
        TRAINIUM1,
        lambda: mamba_v1(256),
        (total_us(172.93),),
        _SOURCE,
    ),
    Row(
        "C7 4096",
        "mamba 1, 4096 channels",
        TRAINIUM1,
        lambda: mamba_v1(4096),
        (total_us(2_340), engine_share("vector", 0.9216)),
        _SOURCE,
    ),
)

ASIDE = (
    Row(
        "A9",
        "mamba 2, 4096 channels",
        TRAINIUM1,
        lambda: mamba_v2(4096),
        (total_us(1_610), engine_share("vector", 0.9963)),
        _SOURCE,
    ),
)
