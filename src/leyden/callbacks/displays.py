"""Displays: how far a loop has come, as plain lines or as a live bar on a terminal."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

Metrics = dict[str, int | float | str]

NARROWEST_BAR, WIDEST_BAR = 10, 40


@dataclass(frozen=True, slots=True)
class Row:
    """What there is to show of one loop.

    Attributes:
        label: Such as ``"epoch  3/10"`` or ``"test"``.
        done: Batches done.
        total: Batches there will be; ``inf`` when nobody knows.
        seconds: Since the loop began.
        rate: Batches a second; 0.0 before the first.
        steps: Optimizer steps of those there will be, such as ``"step 120/5000"``, where their number is limited.
        metrics: Values by name, in the order in which they are shown.
        brief: Belongs on a live display, but is not worth a line that stays.
    """

    label: str
    done: int
    total: int | float
    seconds: float
    rate: float = 0.0
    steps: str = ""
    metrics: Metrics = field(default_factory=dict)
    brief: bool = False

    @property
    def count(self) -> str:
        """Such as ``" 12/938"``, as wide for every ``done``."""
        return str(self.done) if math.isinf(self.total) else f"{self.done:{len(str(self.total))}}/{self.total}"

    @property
    def speed(self) -> str:
        """Batches a second, or seconds for a batch where that is more; ``""`` when neither is known."""
        if not self.rate:
            return ""
        return f"{_short(self.rate)} it/s" if self.rate >= 1 else f"{_short(1 / self.rate)} s/it"


class Display:
    """Shows nothing: what a process other than rank 0 shows.

    Attributes:
        shows: Something comes of what it is told.
        period: Seconds to leave between two calls of ``update``.
    """

    shows: ClassVar[bool] = False
    period: float = math.inf

    def redraw(self, rows: list[Row]) -> None:
        """Another loop runs than before, the last of ``rows``; lines say nothing of that."""

    def update(self, rows: list[Row]) -> None:
        """Show how far the loops have come: the epoch's, and the one inside it where there is one."""

    def keep(self, row: Row) -> None:
        """A loop came to its end: leave a line behind that says how it went."""

    def close(self) -> None:
        """Leave the place as it was found. What is shown next opens it again."""


class PlainDisplay(Display):
    """Aligned lines, for files and pipes: no carriage return and no escape code, and every line is flushed.

    Args:
        period: Seconds between two lines of one loop.
        stream: Where lines go; None is what ``sys.stdout`` is at that moment.
    """

    shows = True

    def __init__(self, period: float, stream: IO[str] | None = None) -> None:
        self.period = period
        self._stream = stream
        self._alignment = Alignment()

    def update(self, rows: list[Row]) -> None:
        if rows[-1].done < rows[-1].total:  # else the line that stays comes next
            self.keep(rows[-1])

    def keep(self, row: Row) -> None:
        if not row.brief:
            cells = self._alignment.cells(row)
            line = "   ".join(cell.text for cell in cells if cell.text).rstrip()
            print(line, file=self._stream, flush=True)


class LiveDisplay(Display):
    """A bar for every loop that runs, redrawn in place, below one line for each that ended. Needs rich.

    There is no thread behind it: the bar moves when ``update`` is called, and processes can be forked at any time.
    While it is open, ``print`` and the log handlers that write to the terminal write above the bar.

    Args:
        period: Seconds between two redraws.
        stream: A terminal; None is what ``sys.stdout`` is now.
    """

    shows = True

    def __init__(self, period: float, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self.period = period
        self._console: Console = Console(file=stream or sys.stdout, force_terminal=True, highlight=False)
        self._alignment = Alignment()
        self._metrics_width = 0  # the most so far: the bar should not jump when a metric comes or goes
        self._live: Live | None = None
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []  # log handlers, and where they wrote before

    def redraw(self, rows: list[Row]) -> None:
        self.update(rows)

    def update(self, rows: list[Row]) -> None:
        if self._live is None:
            self._live = self._open()
        self._live.update(self._drawing(rows), refresh=True)

    def keep(self, row: Row) -> None:
        if not row.brief:
            self._console.print(self._line(row), soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            for handler, stream in self._moved:
                handler.setStream(stream)
            self._moved.clear()
            atexit.unregister(self.close)

    def _open(self) -> Live:
        from rich.live import Live

        live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            # What was sent elsewhere by 2>errors.log must arrive there.
            redirect_stderr=is_terminal(sys.stderr),
        )
        before = sys.stdout, sys.stderr
        live.start()
        atexit.register(self.close)  # whatever happens, the cursor comes back
        for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
            for handler in _log_handlers():
                if handler.stream is old and old is not new:
                    handler.setStream(new)
                    self._moved.append((handler, old))
        return live

    def _line(self, row: Row) -> Text:
        """The line that stays of ``row``; what can best be missed is left out where the terminal is narrow."""
        cells = [cell for cell in self._alignment.cells(row) if cell.text]
        ran_to_its_end = row.done >= row.total or math.isinf(row.total)
        for name in ["count"] * ran_to_its_end + ["speed", "steps"]:
            if sum(2 + len(cell.text) for cell in cells) - 2 > self._console.width:
                cells = [cell for cell in cells if cell.name != name]
        label, *others = (_styled(cell) for cell in cells)
        line = _flowing(label, others, self._console.width, indent=len(label) + 2)
        line.rstrip()
        return line

    def _drawing(self, rows: list[Row]) -> Text:
        """A bar for each of ``rows``, with the first one's metrics behind it, or below where they do not fit."""
        metrics = [
            _styled(Cell(name, f"{name} {formatted(value)}", is_metric=True)) for name, value in rows[0].metrics.items()
        ]
        facts = [[row.label, f"{row.count}  {_clock(row)}", row.steps, row.speed.rjust(10)] for row in rows]
        widths = [max(map(len, column)) for column in zip(*facts, strict=True)]
        free = self._console.width - sum(2 + width for width in widths)
        self._metrics_width = max(self._metrics_width, sum(2 + len(metric) for metric in metrics))
        beside = free - self._metrics_width >= NARROWEST_BAR
        bar_width = max(NARROWEST_BAR, min(WIDEST_BAR, free - self._metrics_width * beside))
        lines = []
        for row, texts in zip(rows, facts, strict=True):
            label, *others = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
            line = _styled(Cell("label", label)).append("  ").append_text(self._bar(row, bar_width))
            lines.append(line.append("  ".join(["", *filter(None, others)])))
        if beside:
            lines[0] = _flowing(lines[0], metrics, self._console.width)
        elif metrics:
            lines.append(_flowing(metrics[0], metrics[1:], self._console.width))
        drawing = _text("\n").join(lines)
        drawing.no_wrap, drawing.overflow = True, "ellipsis"
        return drawing

    def _bar(self, row: Row, width: int) -> Text:
        """``width`` characters, full in proportion; a piece that wanders where the total is not known."""
        dash = "-" if self._console.options.ascii_only else "━"
        rest = " " if self._console.no_color or self._console.color_system is None else dash
        if math.isinf(row.total):
            at = int(row.seconds * 10) % width
            return _text(rest * at, "bar.back").append(dash, "bar.complete").append(rest * (width - at - 1), "bar.back")
        full = min(width, int(width * row.done / row.total)) if row.total else width
        return _text(dash * full, "bar.complete").append(rest * (width - full), "bar.back")


def _log_handlers() -> Iterator[logging.StreamHandler[Any]]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style)


def _styled(cell: Cell) -> Text:
    if not cell.is_metric:
        return _text("").append(cell.text, {"label": "bold", "seconds": "dim", "speed": "dim"}.get(cell.name))
    return _text("").append(cell.name, "dim").append(cell.text[len(cell.name) :], "cyan")


def _flowing(line: Text, cells: Iterable[Text], width: int, indent: int = 0) -> Text:
    """``line`` and ``cells``, going on below, behind ``indent`` spaces, wherever ``width`` is full."""
    column = len(line)
    for cell in cells:
        gap = "  "
        if column + 2 + len(cell) > width:
            gap, column = "\n" + " " * indent, indent - 2
        line.append(gap).append_text(cell)
        column += 2 + len(cell)
    return line


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a line, padded: ``text`` of a metric is its name and value."""

    name: str
    text: str
    is_metric: bool = False


class Alignment:
    """Cells of lines that stand one below another: each is as wide as the widest so far in its column.

    A metric keeps its column; where a line has no value for it, the column stays empty.
    """

    # Wide enough from the start for what is usual, so that the first line seldom differs from the second.
    _NARROWEST: ClassVar[dict[str, int]] = {"label": 8, "seconds": 5, "speed": 10}

    def __init__(self) -> None:
        self._widths = dict(self._NARROWEST)
        self._metrics: dict[str, int] = {}

    def cells(self, row: Row) -> list[Cell]:
        """The cells of ``row``, in order; ``text`` of a column that no line has used yet is empty."""
        facts = {
            "label": row.label,
            "count": f"{row.count} batches",
            "steps": row.steps,
            "seconds": duration(row.seconds),
            "speed": row.speed,
        }
        for name, text in facts.items():
            self._widths[name] = max(self._widths.get(name, 0), len(text))
        cells = [
            Cell(name, text.ljust(self._widths[name]) if name == "label" else text.rjust(self._widths[name]))
            for name, text in facts.items()
        ]
        values = {name: formatted(value) for name, value in row.metrics.items()}
        for name, value in values.items():
            self._metrics[name] = max(self._metrics.get(name, 6), len(value))
        for name, width in self._metrics.items():
            text = f"{name} {values[name]:>{width}}" if name in values else " " * (len(name) + 1 + width)
            cells.append(Cell(name, text, is_metric=True))
        return cells


def formatted(value: int | float | str) -> str:
    """``value`` in about six characters, so that the same metric is as wide in every line.

    >>> formatted(0.12345), formatted(123.45), formatted(3e-7)
    ('0.1235', '123.45', '3.00e-07')
    """
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{4 if size < 10 else 3 if size < 100 else 2 if size < 1000 else 1}f}"


def duration(seconds: float) -> str:
    """A span of time, as exact as its length deserves.

    >>> duration(4.13), duration(125), duration(7380)
    ('4.1s', '2m05s', '2h03m')
    """
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


def is_terminal(stream: Any) -> bool:
    """True when ``stream`` is a terminal on which the cursor can be moved."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False


def _short(number: float) -> str:
    """Three digits or more."""
    return f"{number:.{2 if number < 10 else 1 if number < 1000 else 0}f}"


def _clock(row: Row) -> str:
    """Time passed and time left, such as ``0:00:03 < 0:00:20``."""
    passed = str(timedelta(seconds=int(row.seconds)))
    if math.isinf(row.total):
        return passed
    if not row.rate:
        return f"{passed} < -:--:--"
    return f"{passed} < {timedelta(seconds=math.ceil(max(row.total - row.done, 0) / row.rate))}"
