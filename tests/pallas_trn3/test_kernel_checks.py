"""Wrong kernels are found, by line; right ones near them raise nothing and compute what they say."""

import importlib
from collections import Counter

import numpy as np
import pytest
from wrong_kernels.cases import RIGHT, WRONG, Case

for name in ("limits", "memory", "unwritten", "bounds", "races", "semaphores"):
    importlib.import_module(f"wrong_kernels.{name}")


def test_corpus_is_large_enough():
    assert len(WRONG) >= 60
    assert len(RIGHT) >= 60
    assert max(Counter(case.name for case in (*WRONG, *RIGHT)).values()) == 1


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_wrong_kernel_is_found(case: Case, capfd):
    with pytest.raises(Exception) as raised:  # noqa: PT011 (what a callback raises is JAX's)
        case.run()
    text = str(raised.value)
    for word in case.said:
        assert word in text
    for line in case.lines:
        assert f"{case.file}:{line}" in text
    assert capfd.readouterr() == ("", "")  # what is wrong is raised, not printed


@pytest.mark.parametrize("case", WRONG[::7], ids=lambda case: case.name)
def test_the_same_error_every_time(case: Case):
    said = set()
    for _ in range(2):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            case.run()
        said.add(str(raised.value).splitlines()[-1])
    assert len(said) == 1


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_right_kernel_is_right(case: Case):
    found, expected = case.run()
    np.testing.assert_array_equal(found, expected)
