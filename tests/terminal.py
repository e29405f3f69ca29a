"""A terminal for tests: a real one to write to, and what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from types import TracebackType

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


def screen(written: str) -> str:
    """What stands on a terminal without an edge after ``written``: colours are left out, blank last lines too."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for argument, command, start, down, text in _TOKEN.findall(written):
        if start:
            column = 0
        elif down:
            row += 1
            lines.extend([] for _ in range(row + 1 - len(lines)))
        elif text:
            line = lines[row]
            line.extend(" " * (column - len(line)))
            line[column : column + len(text)] = text
            column += len(text)
        elif command == "K":
            lines[row].clear()
        elif command == "A":
            row -= int(argument or 1)
    return "\n".join("".join(line).rstrip() for line in lines).rstrip("\n")


def screens(written: str) -> list[str]:
    """What stood on the terminal each time before something was erased, and in the end."""
    erased = [match.start() for match in re.finditer(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", written)]
    return [screen(written[:end]) for end in [*erased, len(written)]]


def cursor_is_visible(written: str) -> bool:
    """The cursor, where it was hidden, is back."""
    return written.rfind("\x1b[?25h") >= written.rfind("\x1b[?25l")


class Terminal:
    """A pseudo-terminal in place of ``sys.stdout``, while its ``with`` block runs; the environment describes it.

    Attributes:
        written: All that was written to it, once the block has ended.
    """

    def __init__(self, columns: int = 120) -> None:
        self.written = ""
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns))
        self._main, self._side = _pseudo_terminal(columns)
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        self.written = _read_all(self._main)

    def __enter__(self) -> Terminal:
        self._reader.start()  # or else whoever writes more than fits the buffer waits for ever
        self._stdout, sys.stdout = sys.stdout, os.fdopen(self._side, "w", encoding="utf-8")
        self.stdout = sys.stdout
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout = self._stdout
        self.stdout.close()
        self._reader.join()


def run_in_terminal(command: list[str], columns: int = 120) -> tuple[int, str]:
    """Exit status of ``command``, and all that it wrote to a terminal, on stdout and stderr."""
    main, side = _pseudo_terminal(columns)
    with subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm-256color"}
    ) as process:
        os.close(side)
        written = _read_all(main)
    return process.returncode, written


def _pseudo_terminal(columns: int) -> tuple[int, int]:
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return main, side


def _read_all(main: int) -> str:
    read = b""
    while True:
        try:
            more = os.read(main, 65536)
        except OSError:  # nobody has the other side open any more
            more = b""
        if not more:
            os.close(main)
            return read.decode()
        read += more
