"""Every warning's id is explained in docs/warnings.md, and only those."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from import_graph import SOURCE

TABLE = Path(__file__).parents[2] / "docs" / "warnings.md"


def ids_in_source(root: Path) -> set[str]:
    """Ids that the code uses: strings such as ``"LD001"``, and nothing that merely mentions one."""
    return {
        node.value
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"LD\d{3}", node.value)
    }


def ids_in_table(text: str) -> Counter[str]:
    """Ids in the first column of the table, and how often each stands there."""
    return Counter(re.findall(r"^\|[^|\n]*?(LD\d{3})[^|\n]*\|", text, flags=re.MULTILINE))


def test_the_table_lists_every_warning_that_the_code_gives():
    assert ids_in_source(SOURCE) - set(ids_in_table(TABLE.read_text("utf-8"))) == set()


def test_the_table_lists_no_warning_that_the_code_does_not_give():
    assert set(ids_in_table(TABLE.read_text("utf-8"))) - ids_in_source(SOURCE) == set()


def test_the_table_lists_every_warning_once():
    counts = ids_in_table(TABLE.read_text("utf-8"))
    assert [identity for identity, count in counts.items() if count > 1] == []


def test_ids_are_read_from_code_and_from_the_tables_first_column(tmp_path):
    (tmp_path / "code.py").write_text('"""As in LD003."""\nwarn("LD001", f"x [LD002]")\n')
    assert ids_in_source(tmp_path) == {"LD001"}
    assert ids_in_table("| id | says |\n|---|---|\n| `LD001` | like LD002 |\n|LD004|x|\nLD005\n") == {
        "LD001": 1,
        "LD004": 1,
    }
