"""The example that compares fabrics and memories for collectives."""

import pytest

from examples.collective_scenarios import main, moe_all_to_all, token_decode


def test_a_switch_serves_experts_better_than_a_torus() -> None:
    compared = moe_all_to_all(tokens=4096)
    assert compared.before.size == compared.after.size == 256
    assert 1.5 < compared.speedup < 3


@pytest.mark.parametrize("chips", [1, 2, 4])
def test_sbuf_serves_decoding_better_than_hbm(chips: int) -> None:
    compared = token_decode(batch=16, chips=chips)
    assert compared.after.size == 4 * chips
    assert compared.speedup > 1
    assert compared.after.local.hbm_read_bytes == 0


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert "32768 tokens a chip" in capsys.readouterr().out
