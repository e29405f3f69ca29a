"""The same work as LightningModules of a framework, and contestants that train them with its Trainer."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import pty
import struct
import subprocess
import tempfile
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from loops import Batch, Loader, predict, tiny, validate
from timing import Clock, Contestant

BARE = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Framework:
    """A package with a Trainer, a LightningModule, callbacks and loggers, by the name of its package."""

    name: str

    @property
    def package(self) -> Any:
        return importlib.import_module(self.name)

    @property
    def callbacks(self) -> Any:
        return importlib.import_module(f"{self.name}.callbacks")

    @property
    def loggers(self) -> Any:
        return importlib.import_module(f"{self.name}.loggers")


LEYDEN = Framework("leyden")
LIGHTNING = Framework("lightning.pytorch")


@functools.cache
def plain_class(framework: Framework) -> Any:
    """A module that trains and logs nothing."""

    class Plain(framework.package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, network: Callable[[], nn.Module] = tiny) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            return cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    return Plain


@functools.cache
def evaluated_class(framework: Framework) -> Any:
    """The same with a validation that logs its loss, and with prediction."""

    class Evaluated(plain_class(framework)):  # type: ignore[misc]
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", cross_entropy(self.net(x), y))

        def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, _ = batch
            output: Tensor = self.net(x)
            return output

    return Evaluated


@functools.cache
def once_class(framework: Framework) -> Any:
    """The same with one ``self.log`` in training."""

    class LogsOnce(plain_class(framework)):  # type: ignore[misc]
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            loss = cross_entropy(self.net(x), y)
            self.log("loss", loss)
            return loss

    return LogsOnce


@functools.cache
def often_class(framework: Framework) -> Any:
    """The same with a ``self.log`` for each of many metrics."""

    class LogsOften(plain_class(framework)):  # type: ignore[misc]
        def __init__(self, metrics: int, options: dict[str, Any]) -> None:
            super().__init__()
            self.names, self.options = [f"metric_{index}" for index in range(metrics)], options

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            loss = cross_entropy(self.net(x), y)
            for name in self.names:
                self.log(name, loss, **self.options)
            return loss

    return LogsOften


def plain(framework: Framework, network: Callable[[], nn.Module] = tiny) -> Any:
    return plain_class(framework)(network)


def evaluated(framework: Framework, network: Callable[[], nn.Module] = tiny) -> Any:
    return evaluated_class(framework)(network)


def logging(framework: Framework, metrics: int, **options: Any) -> Any:
    """The tiny module, with ``self.log(..., **options)`` for so many metrics at every step."""
    return once_class(framework)() if metrics == 1 and not options else often_class(framework)(metrics, options)


def by_hand(work: Callable[..., Any], *data: Any, network: Callable[[], nn.Module] = tiny) -> Contestant:
    """``work(net, *data)`` of loops.py."""

    def contest(clock: Clock) -> Any:
        net = network()
        with clock:
            work(net, *data)
        return net.state_dict()

    return contest


def by_fit(make: Callable[[], Any], framework: Framework, *loaders: Loader, **options: Any) -> Contestant:
    """``Trainer(**options).fit`` with nothing else switched on; what makes the Trainer counts too.

    An option that is a function gets the run's folder, and makes its value.
    """

    def contest(clock: Clock) -> Any:
        module = make()
        with tempfile.TemporaryDirectory() as folder:
            given = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, **BARE, **options}
            given = {name: value(folder) if callable(value) else value for name, value in given.items()}
            with clock:
                framework.package.Trainer(**given).fit(module, *loaders)
        return module.net.state_dict()

    return contest


def between(framework: Framework, clock: Clock, starts: str, stops: str) -> Any:
    """A callback that starts and stops ``clock`` at two hooks, so that what lies outside does not count."""

    class Between(framework.package.Callback):  # type: ignore[misc, name-defined]
        pass

    setattr(Between, starts, lambda *_: clock.start())
    setattr(Between, stops, lambda *_: clock.stop())
    return Between()


def validating(framework: Framework, loader: Loader) -> Contestant:
    """The batches of ``Trainer.validate``, from the first to their mean."""

    def contest(clock: Clock) -> None:
        callback = between(framework, clock, "on_validation_start", "on_validation_end")
        options = BARE | {"accelerator": "cpu", "callbacks": [callback]}
        framework.package.Trainer(**options).validate(evaluated(framework), loader, verbose=False)

    return contest


def predicting(framework: Framework, loader: Loader) -> Contestant:
    """The batches of ``Trainer.predict``."""

    def contest(clock: Clock) -> Any:
        callback = between(framework, clock, "on_predict_start", "on_predict_end")
        options = BARE | {"accelerator": "cpu", "callbacks": [callback]}
        return framework.package.Trainer(**options).predict(evaluated(framework), loader)

    return contest


def validating_by_hand(loader: Loader) -> Contestant:
    def contest(clock: Clock) -> None:
        net = tiny().eval()
        with torch.inference_mode(), clock:
            validate(net, loader)

    return contest


def predicting_by_hand(loader: Loader) -> Contestant:
    def contest(clock: Clock) -> Any:
        net = tiny().eval()
        with torch.inference_mode(), clock:
            outputs = predict(net, loader)
        return outputs

    return contest


def showing(contestant: Contestant, terminal: bool) -> Contestant:
    """``contestant`` with its output on a terminal of 120 columns, or in a pipe, that somebody reads."""

    def contest(clock: Clock) -> Any:
        with _terminal() if terminal else _pipe():
            return contestant(clock)

    return contest


@contextlib.contextmanager
def _pipe() -> Iterator[None]:
    # The reader is a process of its own, so that its work is not counted as ours.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as reader:
        assert reader.stdin is not None
        with contextlib.redirect_stdout(reader.stdin), contextlib.redirect_stderr(reader.stdin):
            yield


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before = os.environ.get("TERM")
    os.environ["TERM"] = "xterm-256color"
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(ours)
    try:
        with open(theirs, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield
    finally:
        reader.wait()
        if before is None:
            del os.environ["TERM"]
        else:
            os.environ["TERM"] = before
