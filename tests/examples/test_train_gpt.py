"""The training example, part by part, on whatever devices `jax.devices()` gives."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.train_gpt import data, report, sample, train
from examples.train_gpt.checkpoint import Checkpoints
from examples.train_gpt.model import GPTConfig

CONFIG = train.TrainConfig(
    steps=6,
    batch_size=8,
    seq_len=32,
    model=GPTConfig(width=32, num_layers=1, num_heads=2),
)


@pytest.fixture(autouse=True)
def usual_promotion() -> Iterator[None]:
    """Promote as JAX does by default: Optax multiplies integers with floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def text() -> data.Text:
    return data.load_text()


@pytest.fixture
def mesh() -> Iterator[jax.sharding.Mesh]:
    mesh = train.make_mesh(jax.devices()[:8])
    with jax.set_mesh(mesh):
        yield mesh


def losses(run: train.Run, num_steps: int) -> list[float]:
    """Do steps of `run` and return their losses."""
    for _ in range(num_steps):
        run.advance()
    return [loss for _, loss in run.curve[-num_steps:]]


def test_text_has_its_size_and_is_the_same_every_time(text: data.Text) -> None:
    assert text.train.shape == (data.TRAIN_BYTES,)
    assert text.held_out.shape == (data.HELD_OUT_BYTES,)
    assert str(data.load_text()) == str(text)  # names the sha256 of all bytes
    assert b"def " in text.train.tobytes()


def test_source_files_are_sorted_and_leave_out_tests(tmp_path: Path) -> None:
    for name in ["b.py", "a/z.py", "a/test/t.py", "site-packages/s.py", "_sysconfigdata_x.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in data.source_files(tmp_path)]
    assert found == ["a/z.py", "b.py"]


def test_windows_overlap_by_the_byte_that_is_input_and_target() -> None:
    cut = data.windows(np.arange(10, dtype=np.uint8), seq_len=3)
    np.testing.assert_array_equal(cut, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])


def test_batches_depend_on_seed_and_position_only(text: data.Text) -> None:
    def batches(seed: int, position: int = 0) -> data.Batches:
        return data.Batches(text.train, batch_size=4, seq_len=16, seed=seed, position=position)

    first, again, other = batches(0), batches(0), batches(1)
    drawn = [next(first) for _ in range(3)]
    assert drawn[0].shape == (4, 17)
    assert drawn[0].dtype == np.int32
    np.testing.assert_array_equal(drawn, [next(again) for _ in range(3)])
    np.testing.assert_array_equal(drawn[2], next(batches(0, position=2)))
    assert not np.array_equal(drawn[0], next(other))


def test_an_epoch_draws_every_window_once_and_the_next_in_another_order() -> None:
    text = np.arange(65, dtype=np.uint8)
    batches = data.Batches(text, batch_size=4, seq_len=4, seed=0)
    starts = [int(start) for _ in range(8) for start in next(batches)[:, 0]]
    assert sorted(starts[:16]) == sorted(starts[16:]) == list(range(0, 64, 4))
    assert starts[:16] != starts[16:]


def test_untrained_model_guesses_uniformly(text: data.Text, mesh: jax.sharding.Mesh) -> None:
    run = train.Run(CONFIG, text)
    assert run.held_out_loss(num_batches=1) == pytest.approx(math.log(256), abs=0.1)


def test_weights_and_optimizer_state_are_sharded_alike(
    text: data.Text, mesh: jax.sharding.Mesh
) -> None:
    run = train.Run(CONFIG, text)
    up = run.model.blocks[0].mlp.up.kernel[...]
    assert up.shape == (32, 128)
    assert up.addressable_shards[0].data.shape == (32, 128 // mesh.shape["tensor"])
    run.advance()
    up = run.model.blocks[0].mlp.up.kernel[...]
    moments = [x for x in jax.tree.leaves(run.optimizer.opt_state) if x.shape == up.shape]
    assert len(moments) == 2
    assert all(x.sharding.is_equivalent_to(up.sharding, 2) for x in moments)
    assert len(up.sharding.device_set) == mesh.size


def test_losses_are_those_of_a_single_device(text: data.Text) -> None:
    curves = {}
    for count in (1, 2, 4, 8):
        if count <= jax.device_count():
            with jax.set_mesh(train.make_mesh(jax.devices()[:count])):
                curves[count] = losses(train.Run(CONFIG, text), 4)
    assert curves[1][-1] < curves[1][0]
    for curve in curves.values():
        np.testing.assert_allclose(curve, curves[1], rtol=1e-3)


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    text: data.Text, mesh: jax.sharding.Mesh, tmp_path: Path
) -> None:
    whole = train.Run(CONFIG, text)
    losses(whole, 6)

    interrupted = train.Run(CONFIG, text)
    losses(interrupted, 3)
    writer = Checkpoints(tmp_path, keep=False)
    writer.save(interrupted)
    writer.close()

    resumed = train.Run(CONFIG, text)
    reader = Checkpoints(tmp_path, keep=True)
    reader.restore(resumed)
    assert resumed.step == resumed.batches.position == int(resumed.optimizer.step[...]) == 3
    losses(resumed, 3)
    reader.close()
    assert resumed.curve == whole.curve


def test_a_checkpoint_of_another_run_is_refused(
    text: data.Text, mesh: jax.sharding.Mesh, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=True)
    other = train.Run(dataclasses.replace(CONFIG, seed=1), text)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.restore(other)
    checkpoints.save(train.Run(CONFIG, text))
    with pytest.raises(ValueError, match="'seed': 0"):
        checkpoints.restore(other)
    checkpoints.close()
    fresh = Checkpoints(tmp_path, keep=False)
    assert fresh.latest_step is None
    fresh.close()


def test_a_batch_that_does_not_divide_is_refused(mesh: jax.sharding.Mesh) -> None:
    if mesh.shape["data"] == 1:
        assert train.put_batch(np.zeros((3, 4), np.int32)).shape == (3, 4)
    else:
        with pytest.raises(ValueError, match="does not divide"):
            train.put_batch(np.zeros((3, 4), np.int32))


def test_sampling_writes_bytes_and_depends_on_the_seed_only(
    text: data.Text, mesh: jax.sharding.Mesh
) -> None:
    run = train.Run(CONFIG, text)
    prompts = run.held_out[:4, :-1]
    first = sample.generate(run.model, train.put_batch(prompts), jax.random.key(0), 5)
    assert first.shape == (4, 5)
    assert ((first >= 0) & (first < 256)).all()
    again, other = (sample.sample(run.model, prompts, seed=seed, length=5) for seed in (0, 1))
    assert [sample.decode(np.asarray(row)) for row in first] == [after for _, after in again]
    assert again[0][0] == text.held_out[:32].tobytes().decode()
    assert again != other


def test_sampled_text_cannot_command_a_terminal() -> None:
    assert sample.decode(np.array([0x1B, 0x61, 0x0A, 0xFF], np.int32)) == "\ufffda\n\ufffd"


def test_curve_is_written_compared_and_drawn(tmp_path: Path) -> None:
    curve = [(1, 5.5), (2, 5.0), (3, 4.0)]
    report.write_curve(curve, tmp_path / "loss.json")
    assert json.loads((tmp_path / "loss.json").read_text()) == [
        [1, 5.5],
        [2, 5.0],
        [3, 4.0],
    ]
    assert report.read_curve(tmp_path / "loss.json") == curve
    assert report.largest_difference(curve, [(1, 5.5), (2, 5.25)]) == 0.25
    report.plot({"trn3": curve, "cpu": curve[:2]}, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_progress_is_plain_lines_where_there_is_no_terminal(
    text: data.Text, mesh: jax.sharding.Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train.Run(CONFIG, text)
    with report.TrainingProgress(step=0, stop=2) as progress:
        for _ in range(2):
            run.advance()
            progress.update(run)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1/2", "step 2/2"]
    assert "steps/s" in lines[1]
