"""Displays: what lines and the live bar look like."""

from __future__ import annotations

import io
import logging
import math
import subprocess
import sys
import threading

import pytest

from leyden.callbacks.displays import Display, LiveDisplay, PlainDisplay, Row, duration, formatted, is_terminal
from terminal import Terminal, cursor_is_visible, screen, screens


def epoch(number: int, done: int = 938, total: float = 938, **options) -> Row:
    options = {"seconds": 4.06, "rate": 231.04} | options
    return Row(f"epoch {number:2}/10", done, total, **options)


def lines(*rows: Row) -> list[str]:
    stream = io.StringIO()
    display = PlainDisplay(10.0, stream)
    for row in rows:
        display.keep(row)
    return stream.getvalue().splitlines()


def test_an_epoch_is_one_line():
    row = epoch(3, metrics={"train_loss": 0.12341, "val_loss": 0.09870, "val_acc": 0.9712})
    assert lines(row) == [
        "epoch  3/10   938/938 batches    4.1s   231.0 it/s   train_loss 0.1234   val_loss 0.0987   val_acc 0.9712"
    ]


def test_lines_stay_aligned_while_numbers_grow():
    drawn = lines(
        epoch(1, 12, seconds=4.0, rate=9.5, metrics={"loss": 0.5}),
        epoch(1, metrics={"loss": 12.25}),
        epoch(10, seconds=125, rate=7812, metrics={"loss": 7.125e-6}),
        epoch(10, seconds=59.9, rate=0.25, metrics={"loss": math.nan}),
        Row("test", 20, 100, 0.5, 40.0),
    )
    assert drawn == [
        "epoch  1/10    12/938 batches    4.0s    9.50 it/s   loss 0.5000",
        "epoch  1/10   938/938 batches    4.1s   231.0 it/s   loss 12.250",
        "epoch 10/10   938/938 batches   2m05s    7812 it/s   loss 7.13e-06",
        "epoch 10/10   938/938 batches   59.9s    4.00 s/it   loss      nan",
        "test           20/100 batches    0.5s    40.0 it/s",
    ]


def test_a_metric_keeps_its_column_where_it_has_no_value():
    drawn = lines(
        epoch(1, metrics={"a": 1.0, "b": 2.0, "c": 3.0}),
        epoch(2, metrics={"a": 1.0, "c": 3.0}),
        epoch(3, metrics={"a": 1.0, "c": 3.0, "d": 4.0}),
    )
    assert [line.partition("it/s   ")[2] for line in drawn] == [
        "a 1.0000   b 2.0000   c 3.0000",
        "a 1.0000              c 3.0000",
        "a 1.0000              c 3.0000   d 4.0000",
    ]


def test_an_unknown_length_is_left_out():
    assert lines(Row("epoch 3", 120, math.inf, 4.0, 30.0)) == ["epoch 3    120 batches    4.0s    30.0 it/s"]


def test_steps_are_shown_where_their_number_is_limited():
    assert lines(Row("epoch 3", 5, 5, 4.0, 30.0, steps="step 120/5000")) == [
        "epoch 3    5/5 batches   step 120/5000    4.0s    30.0 it/s"
    ]


def test_before_the_first_batch_there_is_no_speed():
    assert lines(Row("test", 0, 5, 0.0)) == ["test       0/5 batches    0.0s"]


def test_what_is_brief_is_worth_no_line():
    assert lines(Row("sanity check", 2, 2, 1.0, 2.0, brief=True)) == []


def test_an_update_is_a_line_about_the_loop_that_runs():
    stream = io.StringIO()
    PlainDisplay(10.0, stream).update([epoch(1), Row("validate", 3, 8, 1.0, 3.0)])
    assert stream.getvalue() == "validate   3/8 batches    1.0s    3.00 it/s\n"


def test_every_line_is_flushed():
    class Stream(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    stream = Stream()
    PlainDisplay(10.0, stream).keep(epoch(1))
    assert stream.flushed.endswith("it/s\n")


def test_lines_go_to_what_is_standard_output_at_that_moment(capsys):
    display = PlainDisplay(10.0)
    display.keep(Row("test", 1, 1, 1.0, 1.0))
    assert capsys.readouterr().out == "test       1/1 batches    1.0s    1.00 it/s\n"


def test_the_base_shows_nothing_and_never_wants_to():
    display = Display()
    for show in (display.redraw, display.update):
        show([epoch(1)])
    display.keep(epoch(1))
    display.close()
    assert not display.shows
    assert display.period == math.inf


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (-1.5, "-1.5000"),
        (12.3456, "12.346"),
        (123.456, "123.46"),
        (12345.67, "12345.7"),
        (123456.7, "1.23e+05"),
        (0.0001, "1.00e-04"),
        (math.inf, "inf"),
        (7, "7"),
        ("warm-up", "warm-up"),
    ],
)
def test_values_take_about_six_characters(value, text):
    assert formatted(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0s"), (59.94, "59.9s"), (59.96, "1m00s"), (3599.4, "59m59s"), (3599.6, "1h00m"), (90000, "25h00m")],
)
def test_times_are_as_exact_as_they_are_long(seconds, text):
    assert duration(seconds) == text


# The live bar.


def live_screens(*events: tuple[str, list[Row]], columns: int = 120) -> list[str]:
    """What a person sees while a live display is told ``events``, without repetitions, and in the end."""
    with Terminal(columns) as terminal:
        display = LiveDisplay(0.1)
        for event, rows in events:
            getattr(display, event)(rows if event != "keep" else rows[0])
        display.close()
    assert cursor_is_visible(terminal.written)
    seen = screens(terminal.written)
    return [now for now, before in zip(seen, [None, *seen], strict=False) if now != before]


def test_lines_stay_above_the_bar_and_the_bar_goes_away():
    seen = live_screens(
        ("redraw", [epoch(1, 469, metrics={"loss": 0.5})]),
        ("keep", [epoch(1, metrics={"loss": 0.25})]),
        ("redraw", [epoch(2, 0, rate=0.0, seconds=0.0)]),
    )
    bar, line = "━" * 40, "epoch  1/10  938/938 batches   4.1s  231.0 it/s  loss 0.2500"
    first = f"epoch  1/10  {bar}  469/938  0:00:04 < 0:00:03  231.0 it/s  loss 0.5000"
    assert seen == [first, f"{line}\n{first}", f"{line}\nepoch  2/10  {bar}    0/938  0:00:00 < -:--:--", line]


def test_a_bar_is_full_in_proportion(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    seen = live_screens(*[("update", [epoch(1, done, rate=0.0)]) for done in (0, 469, 938, 1000)])
    assert [text.count("━") for text in seen[:4]] == [0, 20, 40, 40]


def test_without_a_known_length_there_is_no_time_left():
    (seen, _) = live_screens(("update", [Row("epoch 3", 120, math.inf, 4.0, 30.0)]))
    assert seen == f"epoch 3  {'━' * 40}  120  0:00:04   30.0 it/s"


def test_validation_is_a_second_bar_that_goes_away():
    outer, inner = epoch(1), Row("validate", 4, 8, 2.0, 2.0)
    seen = live_screens(("redraw", [outer, inner]), ("redraw", [outer]))
    bar = "━" * 40
    first = f"epoch  1/10  {bar}  938/938  0:00:04 < 0:00:00  231.0 it/s"
    assert seen == [f"{first}\nvalidate     {bar}  4/8  0:00:02 < 0:00:02       2.00 it/s", first, ""]


def test_metrics_that_do_not_fit_stand_below():
    metrics = {"train_loss": 0.5, "train_accuracy": 0.5, "val_loss": 0.5, "val_accuracy": 0.5}
    (seen, _) = live_screens(("update", [epoch(1, metrics=metrics), Row("validate", 4, 8, 2.0, 2.0)]), columns=70)
    assert [len(line) <= 70 for line in seen.splitlines()] == [True] * 4
    assert seen.splitlines()[2:] == [
        "train_loss 0.5000  train_accuracy 0.5000  val_loss 0.5000",
        "val_accuracy 0.5000",
    ]


def test_the_bar_keeps_its_width_when_metrics_go():
    metrics = {"a_rather_long_name": 0.5, "another_long_name": 0.5}
    seen = live_screens(("update", [epoch(1, metrics=metrics)]), ("update", [epoch(1)]))
    assert [text.count("━") for text in seen[:2]] == [12, 12]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "epoch  1/10  938/938 batches   4.1s  231.0 it/s  train_loss 0.5000  val 0.2500"),
        (70, "epoch  1/10   4.1s  231.0 it/s  train_loss 0.5000  val 0.2500"),
        (50, "epoch  1/10   4.1s  train_loss 0.5000  val 0.2500"),
        (40, "epoch  1/10   4.1s  train_loss 0.5000\n             val 0.2500"),
    ],
)
def test_a_narrow_terminal_gets_shorter_lines_and_then_more_of_them(columns, line):
    assert live_screens(("keep", [epoch(1, metrics={"train_loss": 0.5, "val": 0.25})]), columns=columns) == [line]


def test_the_count_of_an_epoch_that_was_broken_off_stays():
    row = epoch(1, 120, metrics={"train_loss": 0.5, "val": 0.25})
    assert live_screens(("keep", [row]), columns=70) == [
        "epoch  1/10  120/938 batches   4.1s  train_loss 0.5000  val 0.2500"
    ]


def test_print_writes_above_the_bar():
    with Terminal() as terminal:
        display = LiveDisplay(0.1)
        display.update([epoch(1)])
        print("hello", 1)
        above = sys.stdout is not terminal.stdout
        display.close()
        assert above and sys.stdout is terminal.stdout
    assert screens(terminal.written)[-2].splitlines()[0] == "hello 1"
    assert screen(terminal.written) == "hello 1"


def test_log_lines_go_above_the_bar_and_back_to_where_they_went():
    logger = logging.getLogger("test_displays")
    with Terminal() as terminal:
        handler = logging.StreamHandler(sys.stdout)
        logger.addHandler(handler)
        display = LiveDisplay(0.1)
        display.update([epoch(1)])
        logger.warning("while it is open")
        display.update([epoch(1)])
        display.close()
        assert handler.stream is terminal.stdout
        logger.warning("and after")
        logger.removeHandler(handler)
    assert screen(terminal.written).splitlines() == ["while it is open", "and after"]


def test_the_live_bar_starts_no_thread():
    with Terminal():
        before = threading.active_count()
        display = LiveDisplay(0.1)
        display.update([epoch(1)])
        assert threading.active_count() == before
        display.close()


def test_rich_is_loaded_for_the_live_bar_only():
    code = (
        "import sys; from leyden.callbacks.displays import *; PlainDisplay(1.0).keep(Row('test', 1, 1, 1.0)); "
        "assert 'rich' not in sys.modules; LiveDisplay(1.0); assert 'rich' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_terminal_is_one_whose_cursor_moves(monkeypatch):
    with Terminal() as terminal:
        assert is_terminal(sys.stdout)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_terminal(sys.stdout)
    monkeypatch.setenv("TERM", "xterm")
    closed = terminal.stdout
    assert [is_terminal(stream) for stream in (io.StringIO(), None, closed)] == [False, False, False]
