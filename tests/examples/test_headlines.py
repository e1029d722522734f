"""The table of claims: what it says, that it says what is simulated, and that its programs compute
what they are called."""

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from program_values import values

from examples import collective_scenarios, headlines
from examples.headline_programs.matmul import matmul
from examples.headline_programs.quantized_matmul import quantized_matmul
from examples.headline_programs.softmax import softmax
from examples.headline_programs.streams import dma_stream, vector_add
from examples.headlines import Headline, cost_of_quantizing
from jax_trn3.hardware import Topology, get_topology
from jax_trn3.hardware.datasheet import with_figure


@functools.cache
def found() -> dict[str, Headline]:
    return {line.claim.strip(): line for line in headlines.headlines()}


def line(start: str) -> Headline:
    (only,) = [line for claim, line in found().items() if claim.startswith(start)]
    return only


# What the table says.


@pytest.mark.parametrize(
    ("claim", "published", "band"),
    [
        ("FP8 (double row) against bfloat16, Trainium2, 4096^3", 2, 0.03),
        ("FP8 (double row) against bfloat16, Trainium2, 8192^3", 2, 0.03),
        # A program four times as short waits as long for its first tiles, its start and its stop.
        ("MXFP8 against bfloat16, Trainium3, 4096^3", 4, 0.1),
        ("MXFP8 against bfloat16, Trainium3, 8192^3", 4, 0.04),
        ("bfloat16 peak of a NeuronCore-v3", 79, 0.04),
        ("float8 peak of a NeuronCore-v3", 158, 0.04),
        ("bfloat16 peak of a NeuronCore-v4", 79, 0.04),
        ("mxfp8 peak of a NeuronCore-v4", 315, 0.06),
        ("exponential on VectorE against ScalarE", 4, 0.01),
        ("quantized on line or before", 1, 0.02),
        ("free if a tile from SBUF", 2, 0),
        ("MXFP8 of trn3-gen1", 161, 0.005),
        ("HBM of trn3-gen1", 9.2, 0.005),
        ("MXFP8 of trn3-gen2", 362, 0.005),
        ("HBM of trn3-gen2", 20.7, 0.005),
        ("Trn3 Gen2 against Trn2 UltraServer: compute", 4.4, 0.03),
        ("Trn3 Gen2 against Trn2 UltraServer: memory", 3.4, 0.01),
        ("Trn3 Gen2 against Trn2 UltraServer: bandwidth", 3.9, 0.03),
    ],
)
def test_claims_with_a_figure(claim: str, published: float, band: float) -> None:
    assert line(claim).published == published
    assert abs(line(claim).difference) <= band


@pytest.mark.parametrize(
    ("claim", "low", "high"),
    [
        ("more than 90 %", 90, 100),
        # Maxima and products, which stay as they were, take longer than the exponentials then.
        ("the same in a softmax of 4096 x 8192, rows in SBUF", 1.1, 1.5),
        ("the same in a softmax of 4096 x 8192, rows in HBM", 0.99, 1.1),
        ("free if a tile from HBM", 4, 12),
        ("all-to-all of experts, 64 chips, 16 tokens", 1.0, 3),
        ("all-to-all of experts, 64 chips, 256 tokens", 1.5, 3),
        ("all-to-all of experts, 64 chips, 4096 tokens", 1.5, 3),
        ("all-reduce in decoding 1 token", 1.02, 2),
        ("all-reduce in decoding 16 tokens", 1.1, 2),
        ("all-reduce in decoding 128 tokens", 1.1, 2),
    ],
)
def test_claims_with_a_direction(claim: str, low: float, high: float) -> None:
    assert low <= line(claim).simulated <= high


def test_nothing_else_is_claimed() -> None:
    assert len(found()) == 28


def test_quantization_takes_twice_as_long_as_the_product_it_feeds() -> None:
    assert cost_of_quantizing(1, "sbuf") == pytest.approx(2, rel=0.01)
    assert cost_of_quantizing(2, "sbuf") <= 1.01


README = {
    "FP8 against bfloat16, Trainium2": ["FP8 (double row) against bfloat16, Trainium2, 8192^3"],
    "MXFP8 against bfloat16, Trainium3": ["MXFP8 against bfloat16, Trainium3, 8192^3"],
    "mxfp8 peak": ["mxfp8 peak"],
    "exponential on VectorE": [
        "exponential on VectorE",
        "the same in a softmax of 4096 x 8192, rows in SBUF",
    ],
    "MXFP8 product quantized": ["quantized on line or before", "free if a tile from SBUF"],
    "all-to-all of experts": ["all-to-all of experts, 64 chips, 4096 tokens"],
    "all-reduce in decoding": ["all-reduce in decoding 16 tokens"],
    "Trn3 Gen2 against Trn2": [
        f"Trn3 Gen2 against Trn2 UltraServer: {what}" for what in ("compute", "memory", "bandwidth")
    ],
}


@pytest.mark.parametrize("start", README)
def test_the_readme_says_the_same(start: str) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (cells,) = [row.split("|") for row in text.splitlines() if row.startswith(f"| {start}")]
    written = [float(number) for number in re.findall(r"\d+\.?\d*", cells[3])]
    assert written == pytest.approx([line(claim).simulated for claim in README[start]], rel=0.02)


# That it says what is simulated.

_OTHER = {
    "trn2-ultraserver": {
        "chip.core.tensor.clock_hz": 1.2e9,
        "chip.core.tensor.passes[float8_double_row]": 1.5,
    },
    "trn3": {
        "chip.core.tensor.clock_hz": 2e9,
        "chip.core.tensor.passes[mx]": 2,
        "chip.core.vector.elements_per_cycle[exponential]": 0.25,
        "chip.core.vector.elements_per_cycle[quantize_mx]": 1,
        "chip.core.dma.engine_bytes_per_s": 20e9,
        "chip.hbm_bytes": 2**30,
        "chip.hbm_bandwidth_bytes_per_s": 2e12,
        "chip.fabric.message_ns": 600,
        "chip.fabric.sbuf_hop_latency_ns": 100,
        "chip.fabric.tiers[rack].bandwidth_bytes_per_s": 64e9,
    },
}


def another_topology(name: str, lnc: int = 1) -> Topology:
    topology = get_topology(name, lnc)
    for path, value in _OTHER[name if name in _OTHER else name.partition("-")[0]].items():
        topology = with_figure(topology, path, value)
    return topology


def test_on_another_machine_every_figure_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    here = found()
    for module in (headlines, collective_scenarios):
        monkeypatch.setattr(module, "get_topology", another_topology)
    there = {line.claim.strip(): line for line in headlines.headlines()}
    assert there.keys() == here.keys()
    same = [claim for claim, line in there.items() if line.simulated == here[claim].simulated]
    assert same == []
    assert all(there[claim].published == here[claim].published for claim in here)


def test_it_prints_a_table_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headlines, "headlines", lambda: list(found().values()))
    monkeypatch.setattr(sys, "argv", ["headlines.py"])
    monkeypatch.setenv("COLUMNS", "220")
    headlines.main()
    text = capsys.readouterr().out
    assert "published" in text
    assert "quantized on line or before" in text
    monkeypatch.setattr(sys, "argv", ["headlines.py", "--json"])
    headlines.main()
    read = json.loads(capsys.readouterr().out)
    assert read == [
        dataclasses.asdict(line) | {"difference": line.difference} for line in found().values()
    ]


# That its programs compute what they are called.


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("on", ["vector", "scalar"])
@pytest.mark.parametrize("memory", ["sbuf", "hbm"])
def test_softmax_is_softmax(on: str, memory: str) -> None:
    rows, columns = 384, 64
    x = 4 * random(4 if memory == "sbuf" else 3, 128, columns)
    name, y = ("x in sbuf", "y in sbuf") if memory == "sbuf" else ("x", "y")
    got = values(softmax(rows, columns, on, memory), {name: x})[y][:3]
    wide = x[:3].astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    expected = powers / powers.sum(-1, keepdims=True)
    assert np.allclose(np.array(got, np.float64), expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("memory", ["sbuf", "hbm"])
def test_a_product_quantized_on_line_is_the_product(memory: str) -> None:
    m, k, n = 384, 1024, 1536
    depth, panels = k // 512, n // 512
    weights = random(m, k).astype(ml_dtypes.float8_e4m3fn)
    activations = random(k, n, seed=1)
    # Element k = 512 d + 128 q + p of a column lies in partition p of tile d, at place q of four.
    tiles = activations.reshape(depth, 4, 128, panels, 512).transpose(3, 0, 2, 4, 1)
    tiles = tiles.reshape(panels, depth, 128, 2048)
    quads = weights.reshape(m // 128, 128, depth, 4, 128).transpose(0, 2, 4, 1, 3)
    given = {
        "weights": quads.reshape(-1, 128, 128, 4),
        "weights, scales": np.full((m // 128 * depth, 128, 128), 127, np.uint8),
        "activations in bfloat16": tiles.reshape(-1, 128, 2048),
        "activations in bfloat16, hbm": tiles.transpose(0, 2, 1, 3),
    }
    made = quantized_matmul(m, k, n, memory=memory)
    result = np.array(values(made, given)["result"], np.float64)
    got = result.reshape(panels, m // 128, 128, 512).transpose(1, 2, 0, 3).reshape(m, n)
    expected = weights.astype(np.float64) @ activations.astype(np.float64)
    error = np.abs(got - expected).max() / np.sqrt(np.mean(expected**2))
    assert error < 0.2  # E4M3 has three bits: 3 % an element, averaged over 1,024
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


def test_a_matmul_is_the_product() -> None:
    left, right = random(128, 16, 128), random(128, 4, 512, seed=1)
    memory = values(matmul(512, 512, 512), {"lhsT": left[None], "rhs": right[None]})
    blocks = left.astype(np.float64).reshape(128, 4, 4, 128)
    expected = np.einsum("pkrm,pkn->rmn", blocks, right.astype(np.float64))
    got = np.array(memory["result"][:4], np.float64)
    assert np.allclose(got, expected, rtol=0.01, atol=0.5)


def test_streams_move_and_add() -> None:
    far = random(4, 128, 32)
    assert np.array_equal(values(dma_stream(4, 32), {"far": far})["near"], far)
    a, b = (random(5, 128, 16, seed=seed).astype(np.float32) for seed in (1, 2))
    assert np.array_equal(values(vector_add(5, 16), {"a": a, "b": b})["c"], a + b)


@pytest.mark.parametrize("sizes", [(100, 512, 512), (128, 100, 512), (128, 512, 100)])
def test_a_quantized_product_of_parts_of_tiles_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="=100 is not a multiple of"):
        quantized_matmul(*sizes)


def test_a_softmax_of_half_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="rows=64 is not a multiple of 128"):
        softmax(64, 512, "vector")
