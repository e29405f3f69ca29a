"""Layers: a file imports its own rank or lower, from the module that defines what it wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from import_graph import SOURCE, Import, imports, modules, packages

RANK = {
    "utils": 0,
    "loggers": 1,
    "profilers": 1,
    "fabric": 1,
    "core": 2,
    "callbacks": 3,
    "trainer": 4,
    "options": 4,
    "option_checks": 4,
    "views": 4,
    "legacy": 4,
    "plan": 4,
    "loop_views": 4,
    "trial": 4,
    "trial_process": 4,
    "verify": 4,
    "tuner": 5,
    "cli": 5,
    "report": 5,
    "sweep": 5,
    "utilities": 5,
    "plugins": 5,
    "serve": 5,
    "demos": 5,
    "compat": 6,
    "__main__": 6,
}
RANK_1 = {name for name, rank in RANK.items() if rank == 1}
UPWARD_EDGE = "leyden.core.types"  # names the Trainer for annotations


def part(module: str) -> str:
    """``"core"`` of ``"leyden.core.fit"``; ``""`` of the root, which names modules of every layer."""
    return module.partition(".")[2].partition(".")[0]


def points_up(edge: Import) -> bool:
    user, used = part(edge.importer), part(edge.imported)
    if not {user, used} <= set(RANK) or edge.importer == UPWARD_EDGE:
        return False
    apart = {user, used} <= RANK_1 and user != used and (user, used) != ("fabric", "loggers")
    return apart or RANK[used] > RANK[user]


def upward(root: Path) -> list[str]:
    """Imports of a higher layer, or of another folder of rank 1."""
    return [str(edge) for edge in imports(root) if points_up(edge)]


def from_packages(root: Path) -> list[str]:
    """Imports from a package, where the module that defines the name should stand."""
    return [str(edge) for edge in imports(root) if edge.imported in packages(root)]


def in_functions(root: Path) -> list[str]:
    """Imports of our own modules that wait until a function runs."""
    return [str(edge) for edge in imports(root) if edge.deferred]


def unranked(root: Path) -> set[str]:
    """Files and folders whose layer nobody has decided."""
    return {part(name) for name in modules(root)} - set(RANK) - {""}


def test_every_file_has_a_layer():
    assert unranked(SOURCE) == set()


def test_no_file_imports_a_higher_layer():
    assert upward(SOURCE) == []


def test_no_file_imports_from_a_package():
    assert from_packages(SOURCE) == []


def test_no_file_imports_our_modules_inside_a_function():
    assert in_functions(SOURCE) == []


def plant(folder: Path, file: str, code: str) -> Path:
    """A package ``leyden`` in ``folder`` with empty files in three layers, and ``code`` in ``file``."""
    root = folder / "leyden"
    for name in ("utils/rank", "loggers/csv", "fabric/fabric", "core/fit", "core/types", "trainer"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").touch()
    for package in ("", "utils/", "loggers/", "core/"):
        (root / f"{package}__init__.py").touch()
    (root / file).write_text(code)
    return root


@pytest.mark.parametrize(
    "code",
    [
        "from leyden.trainer import Trainer",
        "import leyden.trainer",
        "from ..trainer import Trainer",
        "def f():\n    from leyden.trainer import Trainer",
        "if TYPE_CHECKING:\n    from leyden.trainer import Trainer",
        "importlib.import_module('leyden.trainer')",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(tmp_path, code):
    line = code.count("\n") + 1
    found = upward(plant(tmp_path, "core/fit.py", code))
    assert found == [f"leyden.core.fit (line {line}) imports leyden.trainer"]


@pytest.mark.parametrize(
    ("file", "code", "allowed"),
    [
        ("core/fit.py", "from leyden.utils.rank import say", True),
        ("core/fit.py", "from leyden.core.types import Trainer", True),
        ("core/types.py", "from leyden.trainer import Trainer", True),
        ("fabric/fabric.py", "from leyden.loggers.csv import CSVLogger", True),
        ("loggers/csv.py", "from leyden.fabric.fabric import Fabric", False),
        ("utils/rank.py", "from leyden.core.types import Trainer", False),
    ],
)
def test_which_layers_may_see_which(tmp_path, file, code, allowed):
    assert bool(upward(plant(tmp_path, file, code))) is not allowed


@pytest.mark.parametrize("code", ["import leyden", "from leyden import Trainer", "from leyden.utils import rank"])
def test_an_import_from_a_package_is_found(tmp_path, code):
    assert len(from_packages(plant(tmp_path, "core/fit.py", code))) == 1


def test_an_import_in_a_function_is_found(tmp_path):
    code = "def f():\n    from leyden.utils.rank import say\n    import yaml"
    assert in_functions(plant(tmp_path, "core/fit.py", code)) == ["leyden.core.fit (line 2) imports leyden.utils.rank"]


def test_a_folder_without_a_layer_is_found(tmp_path):
    assert unranked(plant(tmp_path, "extra.py", "")) == {"extra"}
