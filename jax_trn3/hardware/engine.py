"""The compute engines of a NeuronCore: what each does in a cycle, and what it costs to start.

Cost formulas were published for Trainium1 only (nki/api/nki/isa/__init__.py as of SDK 2.26); where
a later generation has no figure of its own the number is carried over and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .figure import Table, extrapolated, inferred, published, rounded

_GHZ = 10**9
_V2 = "nki/guides/architecture/trainium_inferentia2_arch.rst"
_V3 = "nki/guides/architecture/trainium2_arch.rst"
_V4 = "nki/guides/architecture/trainium3_arch.rst"
_COSTS = "nki/api/nki/isa/__init__.py, SDK 2.26 (Trainium1)"
_PERFORMANCE = "nki/deep-dives/nki_perf_guide.rst"
_MULTIPLIERS = "tools/neuron-explorer/profile-schema-reference.rst"
_THROTTLING = "tools/neuron-explorer/overview-summary-page.rst"


@dataclass(frozen=True)
class TensorEngine:
    """A systolic array: a stationary tile is loaded, then the rows of a moving tile stream by.

    A matmul of N moving rows occupies the array for `max(N, min_moving_cycles) * passes[kind]`
    cycles; each row contracts `rows * depth[kind]` values with every one of `columns` columns.
    """

    clock_hz: int
    """Clock, Hz."""

    rows: int
    """Rows of the array (a count): values of the contracted axis that enter side by side."""

    columns: int
    """Columns of the array (a count): columns of the stationary tile it holds."""

    stationary_fmax: int
    """Most columns of a stationary tile, elements."""

    moving_fmax: int
    """Rows of a moving tile that fill one PSUM bank with float32, elements."""

    max_moving_fmax_float32: int
    """Most rows of a moving tile in one instruction with a float32 result, elements."""

    max_moving_fmax_bfloat16: int
    """Most rows of a moving tile in one instruction with a bfloat16 result, elements."""

    min_moving_cycles: int
    """Cycles that a matmul occupies the array at least."""

    load_columns_per_cycle: int
    """Stationary columns loaded in a cycle, behind the matmul before; columns of packed kinds take
    no longer (trainium2_arch.rst, Double FP8)."""

    latency_cycles: int
    """Cycles from the last moving row's entry until a dependent instruction may read the result."""

    passes: Mapping[str, float]
    """Cycles the array takes for one moving row, by kind of operand."""

    depth: Mapping[str, float]
    """Values of the contracted axis that one row of the array contracts in a moving row, by kind:
    two float8 in a double row, four in an MX quad, four of which one is kept when sparse."""

    sustained_speed: float
    """Share of full speed that the power management leaves to long runs; 1 where it takes none."""

    throttle_speed: float
    """Share of full speed at which the array starts when it was idle; 1 where it does not."""

    throttle_ramp_ns: int
    """Time of work until full speed, ns."""

    throttle_threshold: float
    """Utilisation over a window of `throttle_ramp_ns` below which the throttle re-engages."""

    background_transpose: bool
    """Whether a transpose runs in parallel with a matmul or another transpose."""

    def peak_flops(self, kind: str = "bfloat16") -> float:
        """FLOP/s when every cell multiplies and adds in each pass, at full clock.

        **Raises:** `KeyError` for a kind that this generation does not have.
        """
        return 2 * self.rows * self.columns * self.clock_hz * self.depth[kind] / self.passes[kind]


@dataclass(frozen=True)
class ComputeEngine:
    """VectorE, ScalarE or GpSimdE: lanes in lockstep, one partition each.

    An instruction of N elements a partition occupies the engine for `start_cycles` and then
    `max(N / elements_per_cycle[mode], min_issue_cycles)`; an instruction that needs the result
    starts `latency_cycles` after that.
    """

    clock_hz: int
    """Clock, Hz."""

    lanes: int
    """Partitions worked on side by side (a count)."""

    processors: int
    """Independently programmed processors the lanes are divided among (a count)."""

    min_issue_cycles: int
    """Cycles between the starts of two independent instructions, at least."""

    start_cycles: int
    """Cycles of every instruction before its first element."""

    latency_cycles: int
    """Cycles after an instruction until one that depends on it may start."""

    reduce_cycles: int
    """Cycles to read out the accumulator registers after an instruction that reduces."""

    elements_per_cycle: Mapping[str, float]
    """Elements of one lane in a cycle, by performance mode ("1x", "2x", "4x") or by the name of an
    instruction with a rate of its own. "0.5x" is two operands through one port."""

    psum_access: bool
    """Whether it reads and writes PSUM. All engines reach SBUF."""


@dataclass(frozen=True)
class SyncEngine:
    """SyncE: starts DMAs and waits; it computes nothing."""

    clock_hz: int
    """Clock, Hz."""

    min_issue_cycles: int
    """Cycles between the starts of two instructions, at least."""


def _clock(hz: int, source: str) -> int:
    return published(hz, "Hz", f"{source}, Compute Engine Specifications")


def _passes(cycles: Mapping[str, int], source: str) -> dict[str, float]:
    return {kind: published(float(count), "cycles/row", source) for kind, count in cycles.items()}


def _depth(passes: Mapping[str, float], packed: Mapping[str, int], source: str) -> Table[float]:
    """One value a cell, but for the kinds that pack more."""
    return Table(
        {kind: published(float(packed.get(kind, 1)), "values/cell", source) for kind in passes}
    )


# TensorE

_NO_RAMP = f"{_THROTTLING} names Trainium2 and 3 only"
_ONE_PASS = dict.fromkeys(("bfloat16", "float16", "tfloat32", "float8", "transpose"), 1)

_PASSES_V2 = {
    **_passes(_ONE_PASS | {"float32": 4}, f"{_COSTS}, nc_matmul"),
    "float32_onezero": published(2.0, "cycles/row", f"{_COSTS}, nc_matmul is_moving_onezero"),
    "transpose_float32": inferred(4.0, "cycles/row", "a float32 matmul with the identity"),
}

_PASSES_V3 = {
    **_passes(_ONE_PASS | {"float32": 4}, _MULTIPLIERS),
    "float8_double_row": published(1.0, "cycles/row", f"{_V3}: float8 at twice the rate"),
    "sparse": published(1.0, "cycles/row", "neuron-core-v3.rst: 316 TFLOPS"),
    "float32_onezero": extrapolated(2.0, "cycles/row", f"{_COSTS}, nc_matmul", low=2, high=4),
    "transpose_float32": published(2.0, "cycles/row", f"{_V3}: transpose mode, 2x faster float32"),
}

_PASSES_V4 = _PASSES_V3 | {
    "float8_double_row": published(1.0, "cycles/row", "nki.isa nc_matmul, perf_mode=double_row"),
    "sparse": published(1.0, "cycles/row", "neuron-core-v4.rst: 315 TFLOPS"),
    "mx": published(1.0, "cycles/row", f"{_V4}: four times the rate of bfloat16"),
}

TENSOR_V2 = TensorEngine(
    clock_hz=_clock(2_800_000_000, _V2),
    rows=published(128, "rows", _V2),
    columns=published(128, "columns", _V2),
    stationary_fmax=published(128, "elements", _V2),
    moving_fmax=published(512, "elements", _V2),
    max_moving_fmax_float32=published(512, "elements", f"{_V2}: one PSUM bank"),
    max_moving_fmax_bfloat16=inferred(
        512, "elements", f"{_V4} introduces bfloat16 results of a matmul"
    ),
    min_moving_cycles=published(64, "cycles", f"{_V2}: MM_INIT_LATENCY"),
    load_columns_per_cycle=published(4, "columns/cycle", f"{_V2}: fast LoadStationary"),
    latency_cycles=extrapolated(
        128, "cycles", "the depth of the array: a row passes its 128 cells", low=64, high=256
    ),
    passes=Table(_PASSES_V2),
    depth=_depth(_PASSES_V2, {}, _V2),
    sustained_speed=inferred(
        0.875,
        "fraction",
        "a profile of a long bfloat16 matmul on Trainium1: limit of activity_1 (78.6 TFLOPS)",
        low=0.76,
        high=0.97,
    ),
    throttle_speed=inferred(1.0, "fraction", _NO_RAMP),
    throttle_ramp_ns=inferred(0, "ns", _NO_RAMP),
    throttle_threshold=inferred(0.0, "fraction", _NO_RAMP),
    background_transpose=inferred(False, "flag", f"{_V4} introduces it"),
)

TENSOR_V3 = TensorEngine(
    clock_hz=_clock(2_400_000_000, _V3),
    rows=published(128, "rows", _V3),
    columns=published(128, "columns", _V3),
    stationary_fmax=published(128, "elements", _V3),
    moving_fmax=published(512, "elements", _V3),
    max_moving_fmax_float32=published(512, "elements", f"{_V3}: one PSUM bank"),
    max_moving_fmax_bfloat16=inferred(
        512, "elements", f"{_V4} introduces bfloat16 results of a matmul"
    ),
    min_moving_cycles=extrapolated(64, "cycles", f"{_V2}: MM_INIT_LATENCY", low=32, high=128),
    load_columns_per_cycle=extrapolated(
        4, "columns/cycle", f"{_V2}: fast LoadStationary", low=1, high=4
    ),
    latency_cycles=extrapolated(
        128, "cycles", "the depth of the array: a row passes its 128 cells", low=64, high=256
    ),
    passes=Table(_PASSES_V3),
    depth=_depth(_PASSES_V3, {"float8_double_row": 2, "sparse": 4}, _V3),
    sustained_speed=inferred(
        1.0, "fraction", "long matmuls in profiles: 98 % of the peak (te_inefficiency.md)"
    ),
    throttle_speed=rounded(0.5, "fraction", _THROTTLING),
    throttle_ramp_ns=rounded(3_000, "ns", _THROTTLING),
    throttle_threshold=rounded(0.5, "fraction", _THROTTLING),
    background_transpose=inferred(False, "flag", f"{_V4} introduces it"),
)

TENSOR_V4 = replace(
    TENSOR_V3,
    clock_hz=_clock(2_400_000_000, _V4),
    rows=published(128, "rows", _V4),
    columns=published(128, "columns", _V4),
    stationary_fmax=published(128, "elements", _V4),
    moving_fmax=published(512, "elements", _V4),
    max_moving_fmax_float32=published(4_096, "elements", "nki.isa nc_matmul"),
    max_moving_fmax_bfloat16=published(8_192, "elements", "nki.isa nc_matmul"),
    passes=Table(_PASSES_V4),
    depth=_depth(_PASSES_V4, {"float8_double_row": 2, "sparse": 4, "mx": 4}, _V4),
    sustained_speed=extrapolated(1.0, "fraction", "Trainium2 profiles", low=0.85, high=1.0),
    background_transpose=published(True, "flag", _V4),
)

# VectorE

_DEPENDENT = f"{_PERFORMANCE}: dependent ScalarE instructions take 189 ns = 264 cycles"


def _modes(rates: Mapping[str, float], source: str) -> dict[str, float]:
    return {mode: published(float(rate), "elements/cycle", source) for mode, rate in rates.items()}


VECTOR_V2 = ComputeEngine(
    clock_hz=_clock(1_120_000_000, _V2),
    lanes=published(128, "partitions", _V2),
    processors=inferred(1, "processors", "one instruction works on all lanes"),
    min_issue_cycles=rounded(64, "cycles", f"{_COSTS}, MIN_II"),
    start_cycles=inferred(0, "cycles", f"{_COSTS}: no term beside N"),
    latency_cycles=rounded(
        100, "cycles", f"{_V2}: static overhead of a dependent instruction", low=60, high=200
    ),
    reduce_cycles=rounded(64, "cycles", f"{_COSTS}, tensor_scalar_reduce"),
    elements_per_cycle=Table(
        _modes({"0.5x": 0.5, "1x": 1, "2x": 2}, _COSTS)
        # Documented are 8 cycles an element, with which the reciprocals alone would take longer
        # than the whole of NKIBench's silu, and twice as long as VectorE is active in it.
        | {
            "reciprocal": inferred(
                0.4,
                "elements/cycle",
                "profiles of silu, swiglu, adamw: VectorE is active; nki.api.shared.rst has 1/8",
                low=1 / 8,
                high=1 / 2,
            )
        }
    ),
    psum_access=published(True, "flag", _V2),
)

_MODES_V3 = _modes({"1x": 1, "2x": 2, "4x": 4}, f"{_V3}, performance modes") | _modes(
    {"reciprocal": 1 / 8}, "nki/api/nki.api.shared.rst"
)

VECTOR_V3 = replace(
    VECTOR_V2,
    clock_hz=_clock(960_000_000, _V3),
    min_issue_cycles=extrapolated(64, "cycles", f"{_COSTS}, MIN_II", low=32, high=128),
    latency_cycles=inferred(
        144, "cycles", "nki-library core/topk/rotational_topk_utils.py", low=60, high=200
    ),
    reduce_cycles=extrapolated(64, "cycles", f"{_COSTS}, tensor_scalar_reduce", low=32, high=128),
    elements_per_cycle=Table(_MODES_V3),
)

VECTOR_V4 = replace(
    VECTOR_V3,
    clock_hz=_clock(1_200_000_000, _V4),
    latency_cycles=extrapolated(
        144, "cycles", "Trainium2: nki-library core/topk/rotational_topk_utils.py", low=60, high=200
    ),
    elements_per_cycle=Table(
        _MODES_V3 | _modes({"exponential": 4, "quantize_mx": 4, "random": 4}, _V4)
    ),
)

# ScalarE

SCALAR_V2 = ComputeEngine(
    clock_hz=_clock(1_400_000_000, _V2),
    lanes=published(128, "partitions", _V2),
    processors=inferred(1, "processors", "one instruction works on all lanes"),
    min_issue_cycles=rounded(64, "cycles", f"{_COSTS}, MIN_II"),
    start_cycles=inferred(0, "cycles", f"{_COSTS}: no term beside N"),
    latency_cycles=inferred(200, "cycles", f"{_DEPENDENT}, less MIN_II = 64"),
    reduce_cycles=rounded(64, "cycles", f"{_V2}: ActReadAccumulator"),
    elements_per_cycle=Table(_modes({"1x": 1}, _COSTS)),
    psum_access=published(True, "flag", _V2),
)

SCALAR_V3 = replace(
    SCALAR_V2,
    clock_hz=_clock(1_200_000_000, _V3),
    min_issue_cycles=extrapolated(64, "cycles", f"{_COSTS}, MIN_II", low=32, high=128),
    latency_cycles=inferred(
        137, "cycles", "a profile: tensor_copy of [128, 128] from PSUM, 221 ns = 265 cycles",
        low=100, high=200,
    ),
    reduce_cycles=extrapolated(64, "cycles", f"{_V2}: ActReadAccumulator", low=32, high=128),
    elements_per_cycle=Table(_modes({"1x": 1}, _V3)),
)  # fmt: skip

SCALAR_V4 = replace(
    SCALAR_V3,
    clock_hz=_clock(1_200_000_000, _V4),
    latency_cycles=extrapolated(137, "cycles", "Trainium2, a profile", low=60, high=200),
    elements_per_cycle=Table(_modes({"1x": 1, "2x": 2}, _V4)),
)

# GpSimdE

GPSIMD_V2 = ComputeEngine(
    clock_hz=_clock(1_400_000_000, _V2),
    lanes=published(128, "partitions", _V2),
    processors=published(8, "processors", _V2),
    min_issue_cycles=rounded(64, "cycles", f"{_COSTS}, MIN_II"),
    start_cycles=rounded(150, "cycles", f"{_COSTS}, iota"),
    latency_cycles=extrapolated(60, "cycles", f"{_V2}: one access to SBUF", low=0, high=200),
    reduce_cycles=extrapolated(64, "cycles", f"{_COSTS}, tensor_scalar_reduce", low=0, high=128),
    elements_per_cycle=Table(_modes({"1x": 1}, _COSTS)),
    psum_access=published(False, "flag", "nki.isa tensor_copy: GpSimdE cannot access PSUM"),
)

GPSIMD_V3 = replace(
    GPSIMD_V2,
    clock_hz=_clock(1_200_000_000, _V3),
    min_issue_cycles=extrapolated(64, "cycles", f"{_COSTS}, MIN_II", low=32, high=128),
    start_cycles=extrapolated(150, "cycles", f"{_COSTS}, iota", low=75, high=300),
)

GPSIMD_V4 = replace(GPSIMD_V3, clock_hz=_clock(1_200_000_000, _V4))

# SyncE. Its clock is the core's base clock, in which neuroncore_cycle_count counts.

_SYNC_ISSUE = "a Trainium2 profile: 63-69 set-up instructions in 1.8-2.2 us"

SYNC_V2 = SyncEngine(
    clock_hz=published(1_400_000_000, "Hz", f"{_MULTIPLIERS}, neuroncore_cycle_count"),
    min_issue_cycles=extrapolated(36, "cycles", _SYNC_ISSUE, low=16, high=64),
)

SYNC_V3 = SyncEngine(
    clock_hz=published(1_200_000_000, "Hz", f"{_MULTIPLIERS}, neuroncore_cycle_count"),
    min_issue_cycles=inferred(36, "cycles", _SYNC_ISSUE, low=31, high=42),
)

SYNC_V4 = SyncEngine(
    clock_hz=inferred(1_200_000_000, "Hz", f"{_V4}: as ScalarE and GpSimdE"),
    min_issue_cycles=extrapolated(36, "cycles", _SYNC_ISSUE, low=16, high=64),
)
