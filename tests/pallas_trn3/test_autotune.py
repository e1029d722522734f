"""`autotune` tries every point on simulated time, in processes or one after another."""

import json
import os
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3

SHAPE = jax.ShapeDtypeStruct((128, 2048), jnp.float32)


def doubled(columns: int, partitions: int = 128):
    """A copy of this module that is imported by name can be sent to processes."""

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def function(x):
        spec = pl.BlockSpec((partitions, columns), lambda i, j: (i, j))
        return pl.pallas_call(
            kernel,
            grid=(x.shape[0] // partitions, x.shape[1] // columns),
            in_specs=[spec],
            out_specs=spec,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        )(x)

    return function


def on_engine(engine):
    def kernel(x_ref, o_ref):
        pltrn.tensor_scalar(o_ref, x_ref, 2.0, op0="multiply", engine=engine)

    def function(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    return function


def test_finds_the_fastest():
    tuned = pltrn.autotune(doubled, {"columns": [128, 512, 2048]}, SHAPE, workers=1)
    times = [trial.time_ps for trial in tuned.trials]
    assert len(times) == 3
    assert times == sorted(times)
    assert tuned.best == tuned.trials[0].point
    assert tuned.time_ps == times[0]
    assert tuned.best["columns"] != 128  # 16 short transfers are slower than few long ones
    x = np.arange(SHAPE.size, dtype=np.float32).reshape(SHAPE.shape)
    np.testing.assert_array_equal(tuned.function(x), 2 * x)


def test_every_combination_is_tried():
    space = {"columns": [256, 512], "partitions": [32, 128]}
    tuned = pltrn.autotune(doubled, space, SHAPE, workers=1)
    points = {tuple(trial.point.items()) for trial in tuned.trials}
    assert points == {
        (("columns", c), ("partitions", p)) for c in space["columns"] for p in space["partitions"]
    }


def test_arrays_serve_as_shapes():
    x = np.zeros((128, 256), np.float32)
    tuned = pltrn.autotune(doubled, {"columns": [256]}, x, workers=1)
    assert tuned.shapes == ("float32[128, 256]",)


def test_what_cannot_run_stays_in_the_table():
    space = {"engine": ["vector", "scalar", "tensor"]}
    tuned = pltrn.autotune(on_engine, space, SHAPE, workers=1)
    (refused,) = [trial for trial in tuned.trials if trial.time_ps is None]
    assert refused.point == {"engine": "tensor"}
    assert "tensor does not run it" in refused.reason
    assert tuned.trials[-1] is refused
    assert "tensor does not run it" in str(tuned)


def test_what_does_not_fit_stays_in_the_table():
    wide = jax.ShapeDtypeStruct((128, 1 << 17), jnp.float32)
    tuned = pltrn.autotune(doubled, {"columns": [4096, 1 << 17]}, wide, workers=1)
    assert tuned.best == {"columns": 4096}
    assert "sbuf" in tuned.trials[-1].reason


def test_chip_matters():
    times = {
        chip.name: pltrn.autotune(doubled, {"columns": [512]}, SHAPE, chip=chip, workers=1).time_ps
        for chip in (TRAINIUM2, TRAINIUM3)
    }
    slower = replace(TRAINIUM3, core=replace(TRAINIUM3.core, start_stop_ns=10**6))
    tuned = pltrn.autotune(doubled, {"columns": [512]}, SHAPE, chip=slower, workers=1)
    assert tuned.time_ps > 10**9
    assert times["Trainium2"] != times["Trainium3"]


def test_faces():
    tuned = pltrn.autotune(doubled, {"columns": [512, 2048]}, SHAPE, workers=1)
    document = json.loads(json.dumps(tuned.document()))
    assert document["best"] == tuned.best
    assert document["trials"] == tuned.rows()
    assert document["chip"] == "Trainium3"
    assert [row["reason"] for row in tuned.rows()] == ["", ""]
    text = str(tuned)
    assert "float32[128, 2048]" in text
    assert "1.000" in text


def test_values_that_json_does_not_know():
    def with_function(activation):
        def kernel(x_ref, o_ref):
            o_ref[...] = activation(x_ref[...])

        return pl.pallas_call(kernel, out_shape=SHAPE)

    tuned = pltrn.autotune(with_function, {"activation": [jnp.exp, jnp.tanh]}, SHAPE, workers=1)
    assert {row["point"]["activation"] for row in tuned.rows()} == {"exp", "tanh"}
    json.dumps(tuned.document())


# ---- in processes ----

MODULE = """
import jax
from jax.experimental import pallas as pl

def factory(columns):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def function(x):
        spec = pl.BlockSpec((128, columns), lambda i: (0, i))
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(
            kernel, grid=(x.shape[1] // columns,), in_specs=[spec], out_specs=spec, out_shape=out
        )(x)

    return function
"""


def test_processes_find_the_same(tmp_path, monkeypatch):
    (tmp_path / "factory_of_kernels.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", paths)
    import factory_of_kernels

    space = {"columns": [256, 512, 2048]}
    alone = pltrn.autotune(factory_of_kernels.factory, space, SHAPE, workers=1)
    together = pltrn.autotune(factory_of_kernels.factory, space, SHAPE, workers=2)
    assert together.note == ""
    assert together.trials == alone.trials


def test_lambda_is_tried_in_this_process():
    tuned = pltrn.autotune(
        lambda columns: doubled(columns), {"columns": [512, 1024]}, SHAPE, workers=2
    )
    assert "one after another" in tuned.note
    assert "one after another" in str(tuned)
    assert len(tuned.trials) == 2


def test_broken_pool_is_tried_in_this_process(monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from pallas_trn3 import tuning

    def broken(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(tuning, "_in_processes", broken)
    tuned = pltrn.autotune(doubled, {"columns": [512, 1024]}, SHAPE, workers=2)
    assert "if __name__" in tuned.note
    assert len(tuned.trials) == 2


def test_processes_take_what_is_left(monkeypatch):
    from pallas_trn3 import tuning

    taken = []

    def elsewhere(jobs, workers, advance):
        taken.append((len(jobs), workers))
        return [tuning._trial(*job) for job in jobs]

    monkeypatch.setattr(tuning, "_in_processes", elsewhere)
    space = {"columns": [256, 512, 1024]}
    quick = pltrn.autotune(doubled, space, SHAPE)
    assert taken == []
    monkeypatch.setattr(tuning, "_WORTH_PROCESSES_S", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert pltrn.autotune(doubled, space, SHAPE).trials == quick.trials
    assert taken == [(3, 3)]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "no parameters"),
        ({"columns": []}, "no values for columns"),
        ({"columns": 512}, "a list of values"),
        ({"columns": "512"}, "a list of values"),
    ],
)
def test_space_without_a_point(space, said):
    with pytest.raises(ValueError, match=said):
        pltrn.autotune(doubled, space, SHAPE)


def test_no_worker():
    with pytest.raises(ValueError, match="workers=0"):
        pltrn.autotune(doubled, {"columns": [512]}, SHAPE, workers=0)


def test_nothing_works():
    with pytest.raises(ValueError, match=r"none of 1 points can run(.|\n)*tensor does not run it"):
        pltrn.autotune(on_engine, {"engine": ["tensor"]}, SHAPE, workers=1)


def test_bar_is_for_terminals_only(capsys):
    pltrn.autotune(doubled, {"columns": [512]}, SHAPE, workers=1)
    assert capsys.readouterr() == ("", "")
