"""Checkpoints of a run with Orbax, each device's shards written as they are."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import chex
import jax
import orbax.checkpoint as ocp
from flax import nnx

from .train import Run

State = nnx.State[Any, Any]


class Checkpoints:
    """The latest checkpoints below a directory.

    A checkpoint holds the model, the optimizer's state with its step, the position in the data,
    the losses so far and the settings of the run: a run restored from it goes on as if it had
    never stopped. `keep=False` removes the checkpoints that an earlier run has left there.
    """

    def __init__(self, directory: Path, *, keep: bool) -> None:
        # Not asynchronous: the next step reuses (donates) the very buffers that are being written.
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
        )
        if not keep:
            for step in self._manager.all_steps():
                self._manager.delete(step)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, if there is one."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, run: Run) -> None:
        """Write a checkpoint of `run`; raises `AssertionError` where a parameter is not finite."""
        model, optimizer = nnx.state(run.model), nnx.state(run.optimizer)
        chex.assert_tree_all_finite(nnx.to_pure_dict(model))
        progress = {
            "config": asdict(run.config),
            "position": run.batches.position,
            "curve": run.curve,
        }
        self._manager.save(
            run.step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                optimizer=ocp.args.StandardSave(optimizer),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def restore(self, run: Run) -> None:
        """Put `run` where the latest checkpoint was written, on whatever mesh `run` is on.

        Raises `FileNotFoundError` where there is none, and `ValueError` where it is of a run with
        other settings, whose losses this one could not continue.
        """
        step = self.latest_step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(abstract(nnx.state(run.model))),
                optimizer=ocp.args.StandardRestore(abstract(nnx.state(run.optimizer))),
                progress=ocp.args.JsonRestore(),
            ),
        )
        progress = restored["progress"]
        if progress["config"] != asdict(run.config):
            raise ValueError(
                f"the checkpoint is of a run with {progress['config']}, "
                f"this run has {asdict(run.config)}"
            )
        nnx.update(run.model, restored["model"])
        nnx.update(run.optimizer, restored["optimizer"])
        run.batches.position = progress["position"]
        run.curve = [(int(step), float(loss)) for step, loss in progress["curve"]]

    def close(self) -> None:
        """Wait for what is being written or deleted."""
        self._manager.close()


def abstract(state: State) -> State:
    """`state` with each array replaced by its shape, dtype and sharding."""
    shapes: State = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    return shapes
