"""What every test runs under: one thread, a folder of its own, and marks that skip where something is missing."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from leyden.utils.errors import forget_warnings
from leyden.utils.rank import log

torch.set_num_threads(1)

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, saying why."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
        if item.get_closest_marker("browser") and (missing := browser_tools_missing()):
            item.add_marker(pytest.mark.skip(reason=f"the browser tests need {missing}"))


@functools.cache
def browser_tools_missing() -> str:
    """What is not here of Chromium, node and playwright-core; empty when all are."""
    if not any(map(shutil.which, CHROMIUMS)):
        return f"Chromium: none of {', '.join(CHROMIUMS)} is on the PATH"
    if not shutil.which("node"):
        return "node, which is not on the PATH"
    find = subprocess.run(
        ["node", "-e", "require.resolve('playwright-core')"], cwd=Path(__file__).parent, capture_output=True
    )
    return "" if find.returncode == 0 else "playwright-core: npm install --no-save playwright-core"


@pytest.fixture
def chromium() -> str:
    """Path of the browser, for tests marked ``browser``."""
    return next(path for name in CHROMIUMS if (path := shutil.which(name)))


@pytest.fixture(autouse=True)
def fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start every test in an empty folder, so that none writes into the repository, and as the process's first."""
    monkeypatch.chdir(tmp_path)
    forget_warnings()
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)
    torch.manual_seed(0)
    environment = dict(os.environ)  # seed_everything and the launchers write into it
    yield
    os.environ.clear()
    os.environ.update(environment)
