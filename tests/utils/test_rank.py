"""What happens on rank 0 only: functions, log lines, warnings."""

from __future__ import annotations

import linecache
import logging
import os
import subprocess
import sys
import warnings

import pytest

from leyden.utils.rank import log, rank_zero_only
from leyden.utils.rank_zero import (
    PossibleUserWarning,
    WarningCache,
    disable_possible_user_warnings,
    rank_zero_debug,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_warn,
)


@pytest.fixture
def lines(monkeypatch):
    """What is logged, as records."""
    records: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler = Keeping()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield records
    log.removeHandler(handler)


def test_a_function_runs_on_rank_zero_only(monkeypatch):
    @rank_zero_only
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert (double(2), double.__doc__) == (4, "Twice.")
    monkeypatch.setenv("RANK", "1")
    assert double(2) is None
    assert rank_zero_only(lambda: 1, default=0)() == 0


def test_a_method_can_be_decorated():
    class Logger:
        @rank_zero_only
        def log(self, value: int) -> int:
            return value

    assert Logger().log(3) == 3


def test_the_decorator_tells_the_rank(monkeypatch):
    assert rank_zero_only.rank == 0
    monkeypatch.setenv("RANK", "3")
    assert rank_zero_only.rank == 3


def test_lines_are_logged_with_the_place_that_calls(lines):
    rank_zero_info("loss %.1f", 0.25)
    rank_zero_debug("more")
    assert [(line.levelname, line.getMessage(), line.funcName) for line in lines] == [
        ("INFO", "loss 0.2", "test_lines_are_logged_with_the_place_that_calls"),
        ("DEBUG", "more", "test_lines_are_logged_with_the_place_that_calls"),
    ]


def test_a_line_is_shown_before_there_is_a_trainer(capsys):
    rank_zero_info("hello")
    assert capsys.readouterr().err == "hello\n"


@pytest.mark.parametrize(
    ("give", "category"),
    [
        (rank_zero_warn, UserWarning),
        (rank_zero_deprecation, DeprecationWarning),
        (lambda message: rank_zero_warn(message, stacklevel=5, category=PossibleUserWarning), PossibleUserWarning),
        (WarningCache().warn, UserWarning),
        (WarningCache().deprecation, DeprecationWarning),
    ],
)
def test_a_warning_names_the_line_that_calls(give, category):
    with pytest.warns(category, match="careful") as caught:
        give("careful")
    assert caught[0].category is category
    assert caught[0].filename == __file__
    assert "give(" in linecache.getline(__file__, caught[0].lineno)


def test_other_ranks_are_silent(monkeypatch, lines):
    monkeypatch.setenv("RANK", "1")
    rank_zero_warn("careful")
    rank_zero_deprecation("old")
    rank_zero_info("hello")
    rank_zero_debug("hello")
    WarningCache().warn("careful")
    assert lines == []


def test_a_cache_gives_each_message_once(lines):
    cache = WarningCache()
    for _ in range(2):
        cache.info("hello")
    assert [line.getMessage() for line in lines] == ["hello"]
    assert [line.funcName for line in lines] == ["test_a_cache_gives_each_message_once"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            cache.warn("careful")
            cache.deprecation("careful")
    assert [str(warning.message) for warning in caught] == ["careful"]
    assert cache == {"hello", "careful"}


def test_possible_user_warnings_can_be_silenced():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disable_possible_user_warnings(module="another_module")
        rank_zero_warn("one", category=PossibleUserWarning)
        disable_possible_user_warnings()
        rank_zero_warn("two", category=PossibleUserWarning)
        rank_zero_warn("three")
    assert [str(warning.message) for warning in caught] == ["one", "three"]


@pytest.mark.parametrize(("value", "given"), [("off", False), ("0", False), ("on", True)])
def test_possible_user_warnings_can_be_silenced_by_the_environment(value, given):
    code = (
        "from leyden.utils.rank_zero import PossibleUserWarning, rank_zero_warn\n"
        "rank_zero_warn('careful', category=PossibleUserWarning)"
    )
    environment = {**os.environ, "POSSIBLE_USER_WARNINGS": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("careful" in done.stderr) is given
