"""Bytes of Python's standard library, and batches of them."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Tokens = NDArray[np.int32]

TRAIN_BYTES = 4 * 2**20
HELD_OUT_BYTES = 2**16
HELD_OUT_EVERY = 16
"""Every so many files, one is held out."""
HELD_OUT_PER_FILE = 2**13
"""The most that is taken of a held-out file, so that no single one decides the loss."""

SKIPPED_DIRECTORIES = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
    }  # not there on every machine
    | {"encodings", "pydoc_data", "lib2to3"}  # tables written by programs, not people
)


@dataclass(frozen=True)
class Text:
    """The text to learn from.

    - `train`: `uint8[TRAIN_BYTES]`
    - `held_out`: `uint8[HELD_OUT_BYTES]`, from files of which `train` has no byte
    - `num_files`: how many files were read
    """

    train: Bytes
    held_out: Bytes
    num_files: int

    def __str__(self) -> str:
        digest = hashlib.sha256(self.train.tobytes() + self.held_out.tobytes()).hexdigest()
        return (
            f"Python {sysconfig.get_python_version()} standard library, {self.num_files} files: "
            f"{self.train.size / 2**20:.0f} MiB to train on, "
            f"{self.held_out.size / 2**10:.0f} KiB held out, sha256 {digest[:12]}"
        )


def source_files(root: Path) -> list[Path]:
    """All Python files below `root` except those in skipped directories, in a fixed order."""
    relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [
        root / name
        for name in relative
        if SKIPPED_DIRECTORIES.isdisjoint(name.split("/"))
        and not name.startswith("_sysconfigdata")  # written when Python was built on this machine
    ]


def load_text() -> Text:
    """Read the first bytes of the standard library, every 16th file being held out.

    Raises `ValueError` where the library is too small, as when it is kept in a zip archive.
    """
    root = Path(sysconfig.get_path("stdlib"))
    train, held_out = bytearray(), bytearray()
    num_files = 0
    for index, path in enumerate(source_files(root)):
        if len(train) >= TRAIN_BYTES and len(held_out) >= HELD_OUT_BYTES:
            break
        num_files += 1
        if index % HELD_OUT_EVERY == 0:
            held_out += path.read_bytes()[:HELD_OUT_PER_FILE]
        else:
            train += path.read_bytes()
    if len(train) < TRAIN_BYTES or len(held_out) < HELD_OUT_BYTES:
        raise ValueError(
            f"found {len(train)} + {len(held_out)} bytes of Python source below {root}, "
            f"need {TRAIN_BYTES} + {HELD_OUT_BYTES}"
        )
    return Text(
        train=np.frombuffer(bytes(train[:TRAIN_BYTES]), np.uint8),
        held_out=np.frombuffer(bytes(held_out[:HELD_OUT_BYTES]), np.uint8),
        num_files=num_files,
    )


def windows(text: Bytes, seq_len: int) -> Tokens:
    """Cut `text` into windows that overlap by one byte: `int32[count, seq_len + 1]`.

    The first `seq_len` columns are a model's input, the last `seq_len` its targets.
    """
    starts = np.arange(0, text.size - seq_len, seq_len)
    return text[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)


class Batches:
    """An endless stream of batches `int32[batch_size, seq_len + 1]`, shuffled anew every epoch.

    `position`, the number of batches drawn so far, is all of its state: a stream made with the
    position of another one continues it.
    """

    def __init__(
        self,
        text: Bytes,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        position: int = 0,
    ) -> None:
        self.position = position
        self._windows = windows(text, seq_len)
        self._batch_size = batch_size
        self._seed = seed

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Tokens:
        per_epoch = len(self._windows) // self._batch_size
        epoch, index = divmod(self.position, per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
        self.position += 1
        return self._windows[order[index * self._batch_size :][: self._batch_size]]
