"""What happens before and after the loops, alike for fit, validate, test and predict.

[module's configure_callbacks]
prepare_data        datamodule, module; one process
setup               datamodule, callbacks, module
configure_model
[the checkpoint's model]
... the loop ...
teardown            datamodule, callbacks, module; after a failure too, behind on_exception
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from leyden.core.callback import Callback
from leyden.core.checkpoint import restore_model
from leyden.core.datamodule import LightningDataModule
from leyden.core.hooks import overrides
from leyden.core.module import LightningModule
from leyden.core.run import Run
from leyden.core.saving import end_saving, settle
from leyden.core.state import Fn, Status
from leyden.utils.errors import LeydenWarning, MisconfigurationError, warn
from leyden.utils.lazy import LazyModule
from leyden.utils.rank import say

_faults = LazyModule("leyden.core.faults")


def prepare(run: Run) -> None:
    """Everything before the loop that is the same for all four methods."""
    run.begin()
    module, datamodule, stage = run.module, run.datamodule, str(run.fn)
    module.trainer = run.trainer
    if datamodule is not None:
        datamodule.trainer = run.trainer
    run.resolve_hooks()
    for owner in (datamodule, module):
        if owner is not None:
            run.hook(owner, "prepare_data")()
    for logger in run.loggers:
        run.guard.read(logger, "version")  # chosen now, before any makes a folder, so that all choose the same
    if datamodule is not None:
        run.hook(datamodule, "setup")(stage=stage)
    for callback in run.callbacks:
        if overrides(callback, "setup", Callback):
            run.hook(callback, "setup")(run.trainer, module, stage=stage)
    run.hook(module, "setup")(stage=stage)
    with run.precision.init_context():
        run.hook(module, "configure_model")()
    module.trainer = run.trainer  # modules that were made just now are part of the run too
    run.let_log()
    restore_model(run)


def start_logging(run: Run) -> None:
    """Give every logger the hyper-parameters."""
    if not run.loggers or not run.options.enable_autolog_hparams:
        return
    params = logged_hyperparameters(run.module, run.datamodule)
    for logger in run.loggers:
        if params is not None:
            run.guard.tell([logger], "log_hyperparams", params)
        if run.fn is Fn.FIT:
            run.guard.tell([logger], "log_graph", run.module)
        run.guard.tell([logger], "save")


def logged_hyperparameters(module: LightningModule, datamodule: LightningDataModule | None) -> dict[str, Any] | None:
    """The hyper-parameters of module and datamodule together; None when neither saved any."""
    owners = [owner for owner in (datamodule, module) if owner is not None and owner._log_hyperparams]
    merged: dict[str, Any] = {}
    for owner in owners:
        for name, value in owner.hparams_initial.items():
            if name in merged and merged[name] is not value and not _equal(merged[name], value):
                raise MisconfigurationError(
                    f"The hyper-parameter {name!r} is {merged[name]!r} in the datamodule and {value!r} in the module. "
                    "Rename one, or pass logger=False to one save_hyperparameters."
                )
            merged[name] = value
    return merged if owners else None


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors compare element by element
        return False


def finish(run: Run) -> None:
    """The run came to its end."""
    run.state.stage = None
    run.state.status = Status.FINISHED
    _call_all(iter(_last_calls(run, "success")))


def _call_all(calls: Iterator[Callable[[], Any]]) -> None:
    """Call all of them, whatever one of them raises; what the last one raised is raised then."""
    for call in calls:
        try:
            call()
        except BaseException:
            _call_all(calls)
            raise


def fail(run: Run, error: BaseException) -> None:
    """The run was broken off by ``error``, which the caller raises again; whatever else goes wrong does not hide it.

    Only who wants to end the process, by SystemExit or KeyboardInterrupt, is heard, when everybody has tidied up.
    """
    run.state.status = Status.INTERRUPTED
    _faults.note_place(run, error)
    calls: list[Callable[[], Any]] = [partial(settle, run)]
    calls += [
        partial(callback.on_exception, run.trainer, run.module, error)
        for callback in run.callbacks
        if overrides(callback, "on_exception", Callback)
    ]
    if run.datamodule is not None:
        calls.append(partial(run.datamodule.on_exception, error))
    failed: list[tuple[str, str]] = []  # their names and errors, in words: exceptions would keep all frames alive
    end: BaseException | None = None
    for call in (*calls, *_last_calls(run, "failed")):
        try:
            call()
        except BaseException as another:
            name = getattr(getattr(call, "func", call), "__qualname__", repr(call))
            failed.append((name, f"{type(another).__name__}: {another}"))
            end = end or (another if not isinstance(another, Exception) else None)
    run.state.stage = None
    if end is not None and isinstance(error, Exception):
        raise end
    for name, words in failed:
        try:
            warn("LD063", f"After {type(error).__name__} ended the run, {name} failed too: {words}", subject=name)
        except LeydenWarning as asked:  # warnings are to be errors, and there is one already
            say(str(asked))


def _last_calls(run: Run, status: str) -> list[Callable[[], Any]]:
    """What has everybody tidy up, in order."""
    stage = str(run.fn)
    calls: list[Callable[[], Any]] = []
    if run.datamodule is not None:
        calls.append(partial(run.datamodule.teardown, stage=stage))
    calls += [
        partial(callback.teardown, run.trainer, run.module, stage=stage)
        for callback in run.callbacks
        if overrides(callback, "teardown", Callback)
    ]
    calls.append(partial(run.module.teardown, stage=stage))
    calls += [partial(run.guard.tell, run.loggers, "finalize", status), run.guard.report]
    return [*calls, partial(end_saving, run), run.end_workers, run.end, run.times.stop, partial(_detach, run)]


def _detach(run: Run) -> None:
    """What is logged after the run goes nowhere."""
    for owner in (*run.module.modules(), *run.callbacks):
        owner.__dict__.pop("_results", None)
