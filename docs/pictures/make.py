"""Take the README's pictures anew: the demo in a real terminal, and its TensorBoard page in a real browser.

    python docs/pictures/make.py

Needs tmux, Chromium, node and playwright-core (``NODE_PATH`` may say where that is).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "tests" / "cli" / "page.cjs"
WIDTH, HEIGHT = 112, 44


def terminal(folder: Path) -> str:
    """What ``leyden demo`` leaves on the screen of a terminal, as ANSI text."""
    tmux = ["tmux", "-L", "leyden-pictures"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = ["env", f"PATH={path}", "LC_ALL=C.UTF-8", "PS1=$ ", "bash", "--norc"]
    size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
    subprocess.run([*tmux, "new-session", "-d", *size, "-c", str(folder), *shell], check=True)
    try:
        subprocess.run([*tmux, "send-keys", "clear; leyden demo", "Enter"], check=True)
        for _ in range(180):
            time.sleep(1)
            screen = subprocess.run([*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True)
            if "tensorboard --logdir" in screen.stdout:
                return screen.stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    raise TimeoutError("leyden demo did not end")


def as_page(ansi: str) -> str:
    """``ansi`` as an HTML page that looks like a terminal."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(ansi.rstrip()))
    body = "<body style='margin:0;padding:18px;background:#1b1d23;font-size:15px;width:max-content'>"
    html = console.export_html(theme=MONOKAI, inline_styles=True)
    html = html.replace("<body>", body).replace("font-family:Menlo", "line-height:1.25;font-family:'DejaVu Sans Mono'")
    return re.sub(r"(?<=[;{ ])background-color: #[0-9a-f]{6}", "background-color: transparent", html)


def shoot(url: str, picture: Path, *texts: str) -> None:
    """Take ``picture`` of the page at ``url`` once it shows all ``texts``."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    subprocess.run(["node", str(PAGE), chromium, url, str(picture), *texts], check=True)


def tensorboard(folder: Path) -> None:
    """Take the picture of the TensorBoard page."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "logs"), "--port", "0"]
    with subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)))
            time.sleep(5)
            page = f"{found.group()}?tagFilter=train_loss%7Cval_#timeseries"
            shoot(page, HERE / "tensorboard.png", "train_loss", "val_acc", "val_loss")
        finally:
            server.kill()


def main() -> None:
    """Take both pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = folder / "terminal.html"
        page.write_text(as_page(terminal(folder)))
        shoot(page.as_uri(), HERE / "terminal.png")
        tensorboard(folder)


if __name__ == "__main__":
    main()
