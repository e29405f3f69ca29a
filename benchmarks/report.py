"""RESULTS.md: tables between two marks each; what is written outside them stays."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from rows import Row
from timing import Figures

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = "| work | limit | leyden | quartiles | least | wall | within | lightning | rounds | date |"
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def conditions(peers: bool) -> str:
    """What the figures depend on."""
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    if peers:
        versions.append(f"lightning {importlib.metadata.version('lightning')}")
    return f"{', '.join(versions)}; {processor()}, {os.cpu_count()} cores, one thread."


def processor() -> str:
    """Its name, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def line(row: Row, found: Figures, peer: Figures | None) -> str:
    """One row of the table."""
    first, third = found.cpu.quartiles
    cells = [
        row.what,
        "" if row.limit is None else number(row.limit, row),
        f"**{number(found.cpu.median, row)}**",
        f"{number(first, row)} to {number(third, row)}",
        number(found.cpu.least, row),
        number(found.wall.median, row),
        "" if row.limit is None else "yes" if found.cpu.median <= row.limit else "**no**",
        "" if peer is None else number(peer.cpu.median, row),
        str(len(found.cpu.values)),
        str(datetime.date.today()),
    ]
    return f"| {' | '.join(cells)} |"


def number(value: float, row: Row) -> str:
    """``value`` with its unit."""
    return f"{value:.2f} {row.unit}".rstrip()


def update(lines: list[str], where: str, every: list[Row], script: str = "run.py") -> str:
    """RESULTS.md with ``lines`` in place of those of the same work; other lines of the table stay.

    Lightning's figure stays too where a new line has none, and its version.
    """
    before, begin, rest = RESULTS.read_text().partition(f"<!-- {script} -->")
    old, end, after = rest.partition(f"<!-- /{script} -->")
    if not begin or not end:
        raise SystemExit(f"{RESULTS.name} has no <!-- {script} --> and <!-- /{script} --> to write between")
    if "lightning" not in where and (version := re.search(r"lightning [^;]+", old)):
        where = where.replace(";", f", {version.group()};", 1)
    table = {work(one): one for one in old.splitlines() if one.startswith("| ") and one != HEAD}
    for one in lines:
        cells = one.split(" | ")
        if not cells[_PEER] and work(one) in table:
            cells[_PEER] = table[work(one)].split(" | ")[_PEER]
        table[work(one)] = " | ".join(cells)
    kept = [table[row.what] for row in every if row.what in table]
    return f"{before}{begin}\n{where}\n\n" + "\n".join([HEAD, RULE, *kept]) + f"\n{end}{after}"


_PEER = HEAD.split(" | ").index("lightning")


def work(one: str) -> str:
    """The name of the work in a line of the table."""
    return one.removeprefix("| ").partition(" | ")[0]
