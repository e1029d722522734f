"""An import goes only downwards, and the tests mirror the rooms."""

import ast
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# The rooms from the bottom up, and what each may import of ours.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "hardware": set(),
    "numerics": {"hardware"},
    "isa": {"hardware", "numerics"},
    "simulator": {"hardware", "isa"},
    "compiler": {"hardware", "numerics", "isa", "simulator"},
    "neuron_sdk": {"compiler"},
    "ops": {"numerics"},
    "collectives": {"ops"},
    "pjrt": set(),
    "runtime": {"hardware", "compiler", "pjrt"},
    "plugin": {
        "_version", "hardware", "numerics", "isa", "simulator", "compiler", "ops", "pjrt", "runtime",
        "estimates", "pallas_trn3",
    },
    "profiler": {"simulator", "hardware", "isa"},
    "estimates": {"compiler", "simulator", "hardware", "profiler", "runtime"},
    "pallas_trn3": {
        "hardware", "numerics", "isa", "simulator", "compiler", "ops", "profiler",
    },
}  # fmt: skip
ALL = set(MAY_IMPORT)
MAY_IMPORT |= {"cli": ALL, "__init__": ALL | {"cli"}, "__main__": {"cli"}}

PACKAGES = [name for name in ("jax_trn3", "pallas_trn3") if (ROOT / name).is_dir()]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))

# Directories of tests that stand for no room: the platform as a whole, and what is built on it.
WHOLE = {"platform", "frameworks", "examples", "tools"}


def dotted(path: Path) -> tuple[str, ...]:
    """jax_trn3/pjrt/api.py -> ("jax_trn3", "pjrt", "api"); a package ends in "__init__"."""
    return path.relative_to(ROOT).with_suffix("").parts


def room_of(name: tuple[str, ...]) -> str | None:
    """The room of a module's dotted name; None if it is not ours."""
    if name[0] == "pallas_trn3":
        return "pallas_trn3"
    if name[0] == "jax_trn3":
        return name[1] if len(name) > 1 else "__init__"
    return None


def imported(path: Path) -> set[tuple[str, ...]]:
    """The dotted names that a module imports, anywhere in it, relative ones made absolute."""
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = dotted(path)[: -node.level] if node.level else ()
            module = base + tuple(node.module.split(".") if node.module else ())
            names |= {(*module, alias.name) for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    own = room_of(dotted(path))
    return {room for name in imported(path) if (room := room_of(name))} - {own}


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 20
    assert {"hardware", "compiler", "pjrt", "runtime", "plugin"} <= {
        room_of(dotted(path)) for path in MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(dotted(path)))
def test_module_belongs_to_a_room_and_imports_only_downwards(path: Path) -> None:
    room = room_of(dotted(path))
    assert room in MAY_IMPORT, f"{room} is not in the table of rooms"
    assert rooms_imported(path) <= MAY_IMPORT[room]


def test_order_of_the_rooms_has_no_cycle() -> None:
    seen: set[str] = set()
    for room in ("_version", "hardware", "numerics", "isa", "simulator", "compiler", "neuron_sdk",
                 "ops", "collectives", "pjrt", "runtime", "profiler", "estimates", "pallas_trn3",
                 "plugin"):  # fmt: skip
        assert MAY_IMPORT[room] <= seen
        seen.add(room)
    assert seen == ALL


def test_upward_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "jax_trn3" / "pjrt" / "deep" / "bad.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import numpy, jax_trn3.cli\n"
        "from jax_trn3 import hardware\n"
        "from ...runtime.arrays import copy\n"
        "from ... import compiler as c\n"
        "from .. import errors\n"
        "def f():\n    from pallas_trn3.x import y\n"
    )
    assert rooms_imported(module) == {"cli", "hardware", "runtime", "compiler", "pallas_trn3"}


def test_directories_of_tests_mirror_the_rooms() -> None:
    directories = {p.name for p in TESTS.iterdir() if p.is_dir() and any(p.glob("test_*.py"))}
    assert directories - WHOLE <= set(MAY_IMPORT)
    for room in directories - WHOLE:
        assert (ROOT / "jax_trn3" / room).exists() or (ROOT / room).exists(), room


def test_no_two_test_files_share_a_name() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_test_directories_are_no_packages() -> None:
    assert list(TESTS.rglob("__init__.py")) == []
