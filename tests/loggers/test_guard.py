"""LoggerGuard: a logger that fails or hangs neither ends a run nor holds it up."""

import signal
import sqlite3
import threading
import time
import warnings

import pytest

import leyden
from leyden.loggers.csv import CSVLogger
from leyden.loggers.guard import LoggerGuard
from leyden.loggers.logger import Logger
from leyden.utils.errors import LeydenWarning
from models import TinyModel, tiny_loader


class Kept(Logger):
    """Keeps what it is sent; ``broken`` says which methods fail, and how often."""

    def __init__(self, **broken):
        self.records, self.calls, self.broken = [], [], broken

    def does(self, name):
        self.calls.append(name)
        if self.broken.get(name, 0) > 0:
            self.broken[name] -= 1
            raise ConnectionError(f"{name} has no server")

    @property
    def version(self):
        self.does("version")
        return 3

    def log_metrics(self, metrics, step=None):
        self.does("log_metrics")
        self.records.append((dict(metrics), step))

    def log_hyperparams(self, params, *args, **kwargs):
        self.does("log_hyperparams")

    def log_graph(self, model, input_array=None):
        self.does("log_graph")

    def log_media(self, name, media, step=None):
        self.does("log_media")

    def save(self):
        self.does("save")

    def finalize(self, status):
        self.does(f"finalize {status}")


class Hangs(Kept):
    time_limit = 0.02

    def log_metrics(self, metrics, step=None):
        if self.does("log_metrics") is None and len(self.calls) > 1:
            time.sleep(60)


class LogsMuch(TinyModel):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"width": 3})

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))


def fit(*loggers, steps=6, callbacks=(), model=None, **options):
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = leyden.Trainer(
        max_epochs=1, logger=list(loggers), callbacks=list(callbacks), log_every_n_steps=1, **{**off, **options}
    )
    trainer.fit(model or LogsMuch(), tiny_loader(steps))
    return trainer


def ids(warned):
    return [str(one.message)[-6:-1] for one in warned]


EVERYTHING = ("version", "log_metrics", "log_hyperparams", "log_graph", "save", "finalize success")


@pytest.mark.parametrize("method", EVERYTHING)
def test_no_call_that_fails_ends_the_fit(method):
    broken, well = Kept(**{method: 1}), Kept()
    with pytest.warns(LeydenWarning) as warned:
        trainer = fit(broken, well)
    assert trainer.global_step == 6 and trainer.state.finished
    assert set(broken.calls) == set(well.calls) == set(EVERYTHING)
    assert ids(warned) == ["LD230"] + ["LD233"] * method.startswith("log_")
    message = str(warned[0].message)
    assert f"Kept.{method.split()[0]} failed" in message
    assert f"ConnectionError: {method} has no server" in message
    assert 'test_guard.py", line' in message and "guard.py" not in message.replace("test_guard.py", "")


def test_calls_go_on_after_a_failure_and_the_end_says_what_is_lost():
    logger = Kept(log_metrics=2)
    with pytest.warns(LeydenWarning) as warned:
        fit(logger)
    assert [step for _, step in logger.records] == [2, 3, 4, 5]
    assert ids(warned) == ["LD230", "LD233"]
    assert str(warned[1].message) == "2 records were lost in logging: 2 of Kept. [LD233]"


def test_after_three_failures_in_a_row_a_logger_is_off_but_for_its_end():
    broken, well = Kept(log_metrics=100), Kept()
    with pytest.warns(LeydenWarning) as warned:
        fit(broken, well)
    assert broken.calls.count("log_metrics") == 3
    assert broken.calls[-1] == "finalize success"
    assert len(well.records) == 6
    assert ids(warned) == ["LD230", "LD231", "LD233"]
    assert "log_metrics failed 3 times in a row, at last with ConnectionError: log_metrics has no server" in str(
        warned[1].message
    )
    assert "6 records were lost in logging: 6 of Kept." in str(warned[2].message)


def test_failures_that_are_not_in_a_row_leave_a_logger_on():
    class Flaky(Kept):
        def log_metrics(self, metrics, step=None):
            self.broken["log_metrics"] = step % 3 != 2
            super().log_metrics(metrics, step)

    logger = Flaky()
    with pytest.warns(LeydenWarning) as warned:
        fit(logger, steps=9)
    assert [step for _, step in logger.records] == [2, 5, 8]
    assert ids(warned) == ["LD230", "LD233"]


def test_another_run_gives_the_logger_another_chance():
    logger = Kept(log_metrics=4)
    with pytest.warns(LeydenWarning):
        trainer = fit(logger)
    with pytest.warns(LeydenWarning) as warned:
        trainer.test(LogsMuch(), tiny_loader(2), verbose=False)  # one epoch value
    assert ids(warned) == ["LD230", "LD233"]
    trainer.test(LogsMuch(), tiny_loader(2), verbose=False)
    assert len(logger.records) == 1


def test_the_loggers_stay_the_users_own_objects():
    one, other = Kept(), Kept()
    trainer = fit(one, other)
    assert trainer.loggers[0] is one and trainer.loggers[1] is other
    assert "log_metrics" not in vars(one)


def test_a_logger_that_is_taken_in_during_the_run_is_guarded_too():
    class Swaps(leyden.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                trainer.logger = Kept(log_metrics=1)

    with pytest.warns(LeydenWarning) as warned:
        trainer = fit(Kept(), callbacks=[Swaps()])
    assert str(warned[1].message) == "1 record was lost in logging: 1 of Kept. [LD233]"
    assert [step for _, step in trainer.logger.records] == [3, 4, 5]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_to_end_the_process_passes(stop):
    class Stops(Kept):
        def log_metrics(self, metrics, step=None):
            raise stop

    with pytest.raises(stop):
        fit(Stops())


def test_a_warning_that_is_asked_to_be_an_error_ends_the_run():
    with pytest.raises(LeydenWarning, match="log_metrics has no server"):
        fit(Kept(log_metrics=1), warnings={"LD230": "error"})


def test_a_failing_end_after_a_failing_run_does_not_hide_the_cause():
    class Breaks(TinyModel):
        def training_step(self, batch, batch_idx):
            raise ValueError("the cause")

    logger = Kept(**{"finalize failed": 1})
    with pytest.warns(LeydenWarning, match="LD230"), pytest.raises(ValueError, match="the cause"):
        fit(logger, model=Breaks())


def test_values_that_cannot_be_logged_are_still_the_users_error():
    class LogsText(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("name", "text")
            return self.loss(batch)

    with pytest.raises((TypeError, ValueError), match="text"):
        fit(Kept(), model=LogsText())


def test_calls_are_made_in_the_thread_of_the_run_at_once_and_in_order():
    class Tells(Kept):
        def log_metrics(self, metrics, step=None):
            self.records.append((threading.get_ident(), step))

    seen = []

    class Reads(leyden.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(len(trainer.logger.records))

    logger = Tells()
    fit(logger, callbacks=[Reads()])
    assert logger.records == [(threading.get_ident(), step) for step in range(6)]
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_logger_on_a_connection_of_sqlite_works():
    class Sqlite(Logger):
        def __init__(self):
            self.connection = sqlite3.connect(":memory:")
            self.connection.execute("CREATE TABLE metrics (step INTEGER, loss REAL)")

        def log_metrics(self, metrics, step=None):
            self.connection.execute("INSERT INTO metrics VALUES (?, ?)", (step, metrics["train_loss"]))

    logger = Sqlite()
    fit(logger)
    assert logger.connection.execute("SELECT count(*), max(step) FROM metrics").fetchone() == (6, 5)
    logger.connection.close()


# Loggers that hang.


def test_a_call_that_hangs_is_broken_off_and_the_run_goes_on():
    hangs, well = Hangs(), Kept()
    before = time.monotonic()
    with pytest.warns(LeydenWarning) as warned:
        trainer = fit(hangs, well)
    assert time.monotonic() - before < 10
    assert trainer.global_step == 6
    assert len(well.records) == 6
    assert hangs.calls.count("log_metrics") == 1
    assert not any(call.startswith("finalize") for call in hangs.calls)  # it was left in the middle of something
    assert ids(warned) == ["LD232", "LD233"]
    message = str(warned[0].message)
    assert "Hangs.log_metrics took more than 0.2 s" in message
    assert "time.sleep(60)" in message
    assert "6 records were lost in logging: 6 of Hangs." in str(warned[1].message)


@pytest.mark.parametrize("waits", ["lock", "queue", "socket", "event"])
def test_whatever_waits_in_python_is_broken_off(waits):
    import queue
    import socket

    lock, pair = threading.Lock(), socket.socketpair()
    lock.acquire()
    wait = {
        "lock": lock.acquire,
        "queue": queue.Queue().get,
        "socket": lambda: pair[0].recv(1),
        "event": threading.Event().wait,
    }[waits]

    class Waits(Kept):
        time_limit = 0.01

        def log_metrics(self, metrics, step=None):
            wait()

    with pytest.warns(LeydenWarning, match=r"took more than 0\.1 s"):
        LoggerGuard().tell([Waits()], "log_metrics", {}, 0)
    for end in pair:
        end.close()


def test_a_logger_that_catches_every_exception_and_tries_again_is_broken_off():
    class Retries(Kept):
        time_limit = 0.01

        def log_metrics(self, metrics, step=None):
            while True:
                try:
                    time.sleep(60)
                except Exception:
                    continue

    with pytest.warns(LeydenWarning, match="LD232"):
        LoggerGuard().tell([Retries()], "log_metrics", {}, 0)


class Slow(Kept):
    time_limit = 0.1

    def log_metrics(self, metrics, step=None):
        time.sleep(0.15)
        super().log_metrics(metrics, step)

    def save(self):
        time.sleep(0.15)
        super().save()


def test_what_connects_or_uploads_may_take_ten_times_as_long():
    logger, guard = Slow(), LoggerGuard()
    guard.tell([logger], "log_metrics", {"loss": 1.0}, 0)  # the first may connect
    guard.tell([logger], "save")
    guard.tell([logger], "save")
    assert logger.calls == ["log_metrics", "save", "save"]
    with pytest.warns(LeydenWarning, match=r"took more than 0\.1 s"):
        guard.tell([logger], "log_metrics", {"loss": 1.0}, 1)
    assert len(logger.records) == 1


def test_a_logger_may_have_no_limit():
    class Patient(Slow):
        time_limit = float("inf")

    logger, guard = Patient(), LoggerGuard()
    for step in range(2):
        guard.tell([logger], "log_metrics", {"loss": 1.0}, step)
    assert len(logger.records) == 2


def test_the_alarm_is_left_as_it_was_found():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGALRM, mine)
    try:
        LoggerGuard().tell([Kept()], "log_metrics", {}, 0)
        assert signal.getsignal(signal.SIGALRM) is mine
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_that_somebody_else_has_set_still_rings():
    class Rang(Exception):
        pass

    def mine(number, frame):
        rang.append(number)
        raise Rang

    class Sleeps(Kept):
        time_limit = 0.01

        def log_metrics(self, metrics, step=None):
            time.sleep(0.4)

    rang = []
    before = signal.signal(signal.SIGALRM, mine)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.warns(LeydenWarning, match="Rang"):
            LoggerGuard().tell([Sleeps()], "log_metrics", {}, 0)
        assert rang == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_that_is_set_during_the_call_stays_set():
    class Sets(Kept):
        def log_metrics(self, metrics, step=None):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 100)

    before = signal.getsignal(signal.SIGALRM)
    try:
        LoggerGuard().tell([Sets()], "log_metrics", {}, 0)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_run_outside_of_the_main_thread_is_guarded_against_failures():
    broken, trainers = Kept(log_metrics=1), []

    def run():
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            trainers.append(fit(broken))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert trainers[0].global_step == 6
    assert len(broken.records) == 5


def test_loggers_of_leyden_set_no_alarm_for_local_folders(tmp_path):
    armed = []

    class Looks(CSVLogger):
        def log_metrics(self, metrics, step=None):
            armed.append(signal.getitimer(signal.ITIMER_REAL)[0] > 0)

    LoggerGuard().tell([Looks(tmp_path)], "log_metrics", {}, 0)
    Looks.__module__ = CSVLogger.__module__
    LoggerGuard().tell([Looks(tmp_path), Looks("memory://logs")], "log_metrics", {}, 0)
    assert armed == [True, False, True]
