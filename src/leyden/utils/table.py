"""Aligned tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def draw_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head and a frame; the first column is aligned left, the others right.

    >>> print(draw_table(["metric", "value"], [["loss", "0.5"]]))
    ┌────────┬───────┐
    │ metric │ value │
    ├────────┼───────┤
    │ loss   │   0.5 │
    └────────┴───────┘
    """
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"│ {' │ '.join(padded)} │"

    def rule(left: str, middle: str, right: str) -> str:
        return left + middle.join("─" * (width + 2) for width in widths) + right

    return "\n".join([rule("┌", "┬", "┐"), line(heads), rule("├", "┼", "┤"), *map(line, rows), rule("└", "┴", "┘")])
