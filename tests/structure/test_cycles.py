"""The import graph has no cycle, counting imports under TYPE_CHECKING and in functions."""

from __future__ import annotations

import itertools
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from import_graph import SOURCE, imports

UPWARD_EDGE = "leyden.core.types"  # names the Trainer for annotations


def cycle(root: Path) -> str:
    """One import cycle of the package in ``root``, such as ``a > b > a``; empty when there is none."""
    graph = defaultdict(set)
    for edge in imports(root):
        if edge.importer != UPWARD_EDGE:
            graph[edge.importer].add(edge.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " > ".join(reversed(error.args[1]))  # graphlib lists them from the imported to the importer
    return ""


def write(folder: Path, **files: str) -> Path:
    root = folder / "leyden"
    root.mkdir()
    for name, code in files.items():
        (root / f"{name}.py").write_text(code)
    return root


def test_there_is_no_import_cycle():
    assert cycle(SOURCE) == ""


def test_a_cycle_is_named_in_the_order_of_its_imports(tmp_path):
    root = write(
        tmp_path,
        a="from leyden.b import B",
        b="if TYPE_CHECKING:\n    from leyden.c import C",
        c="def f():\n    import leyden.a",
        d="from leyden.a import A",
    )
    steps = cycle(root).split(" > ")
    assert steps[0] == steps[-1]
    assert set(itertools.pairwise(steps)) == {
        ("leyden.a", "leyden.b"),
        ("leyden.b", "leyden.c"),
        ("leyden.c", "leyden.a"),
    }


def test_two_ways_to_the_same_module_are_no_cycle(tmp_path):
    assert cycle(write(tmp_path, a="import leyden.b, leyden.c", b="import leyden.c", c="")) == ""
