"""An estimate as JSON: whole, readable again, and the same for the summary and comparisons."""

import json
from pathlib import Path

import pytest
from hand_made import body, collective, compute, estimate_of

from jax_trn3.estimates import VIEWS, compare, save, summary
from jax_trn3.estimates.json_view import Document, OperationRow, document, read, save_document

ESTIMATE = estimate_of(body(compute(lacks="no sort"), collective(), (7, [compute("products", 30)])))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    ESTIMATE.save(path)
    assert read(path) == document(ESTIMATE)
    assert summary(read(path)) == summary(ESTIMATE)
    assert compare(read(path), read(path)) == compare(ESTIMATE, ESTIMATE)
    save_document(document(ESTIMATE, 100), path)
    assert read(path)["machine"]["tokens_per_s"] == ESTIMATE.tokens_per_s(100)


def test_holds_what_its_schema_says() -> None:
    found = document(ESTIMATE)
    assert set(found) == set(Document.__annotations__)
    assert all(set(row) == set(OperationRow.__annotations__) for row in found["operations"])
    assert json.loads(json.dumps(found)) == found


def test_neuron_explorers_names_are_its_own() -> None:
    from jax_trn3.profiler.parquet_schema import TABLES

    known = {column.name for column in TABLES["Summary"]}
    assert set(document(ESTIMATE)["summary"]) <= known


def test_figures_are_the_estimates() -> None:
    found = document(ESTIMATE)
    assert found["summary"]["mfu_estimated_percent"] == ESTIMATE.mfu
    assert found["summary"]["cc_op_count"] == 1
    assert found["summary"]["cc_op_time"] == collective().time_ps / 1e12
    assert found["bounds_s"] == ESTIMATE.bounds
    assert next(iter(found["bounds_s"])) == found["bound"]
    (lack,) = found["lacks"]
    assert lack["what"] == "no sort"
    assert lack["place"]["origin"] == "/somewhere/model.py:7"
    assert lack["place"]["jax_name"] == "jit(step)/layer/dot_general"
    (value,) = found["memory"]["largest"]
    assert value["shape"] == [2**27, 4]
    assert found["mesh"] == [{"name": "data", "size": 4}, {"name": "model", "size": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[1]", "is something else; this reads version 1 of 'jax-trn3 estimate'"),
        ('{"schema": "jax-trn3 timeline", "version": 1}', "is a 'jax-trn3 timeline' of version 1"),
        ('{"schema": "jax-trn3 estimate", "version": 99}', "of version 99; this reads version 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="other.json") as caught:
        read(path)
    assert message in str(caught.value)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a run of 0 tokens: at least 1"):
        document(ESTIMATE, 0)
    with pytest.raises(ValueError, match="JSON shows no instructions"):
        save(ESTIMATE, tmp_path / "x.json", (0, 1))
    with pytest.raises(ValueError, match=f"no view ends in '.txt'; these do: {', '.join(VIEWS)}"):
        save(ESTIMATE, tmp_path / "x.txt")
