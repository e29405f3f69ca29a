"""Files stay short enough to read in one sitting."""

from __future__ import annotations

from pathlib import Path

from import_graph import SOURCE

LINES_OF_A_FILE = 700
LINES_OF_THE_LOOP = 450


def longer_than(limit: int, root: Path) -> dict[str, int]:
    """Lines of every source file under ``root`` that has more than ``limit``."""
    lines = {str(path.relative_to(root)): len(path.read_text("utf-8").splitlines()) for path in root.rglob("*.py")}
    return {name: number for name, number in lines.items() if number > limit}


def test_no_file_is_longer_than_700_lines():
    assert longer_than(LINES_OF_A_FILE, SOURCE) == {}


def test_the_loop_is_not_longer_than_450_lines():
    assert (SOURCE / "core" / "fit.py").is_file()
    assert "core/fit.py" not in longer_than(LINES_OF_THE_LOOP, SOURCE)


def test_a_file_that_is_one_line_too_long_is_found(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 11)
    (tmp_path / "short.py").write_text("x = 1\n" * 10)
    assert longer_than(10, tmp_path) == {"long.py": 11}
