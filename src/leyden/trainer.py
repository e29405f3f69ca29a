"""Trainer: the entry points."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from leyden.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from leyden.callbacks.model_summary import ModelSummary
from leyden.callbacks.progress import ProgressBar
from leyden.callbacks.timer import Timer
from leyden.core.batches import Source
from leyden.core.callback import Callback
from leyden.core.checkpoint import capture
from leyden.core.datamodule import LightningDataModule
from leyden.core.evaluate import Metrics, predict, test, validate
from leyden.core.fit import fit
from leyden.core.lifecycle import fail, finish, prepare
from leyden.core.loading import read_checkpoint
from leyden.core.module import LightningModule
from leyden.core.optimizers import SteppingOptimizer
from leyden.core.run import Run
from leyden.core.saving import settle, write
from leyden.core.state import Fn, RunState, SaveRequest, Status
from leyden.core.types import FormerOfFit, FormerOfPredict, FormerOfTest, FormerOfValidate, Unpack
from leyden.fabric.resolve import resolve_hardware
from leyden.loggers.logger import DummyLogger, Logger
from leyden.option_checks import check_argument
from leyden.options import TrainerOptions
from leyden.utils.errors import MisconfigurationError, forget_warnings, warn
from leyden.utils.lazy import LazyModule
from leyden.utils.optional import installed
from leyden.utils.paths import shown
from leyden.utils.rank import say, speak_plainly
from leyden.utils.seed import isolate_rng
from leyden.views import RunViews

if TYPE_CHECKING:
    from leyden.plan import Plan
    from leyden.verify import Verification

P = ParamSpec("P")

_compiled_module = LazyModule("leyden.core.compiled_module")
_finding = LazyModule("leyden.core.finding")
_profilers = LazyModule("leyden.profilers.profiler")
_profiling = LazyModule("leyden.core.profiling")
_csv = LazyModule("leyden.loggers.csv")
_plan = LazyModule("leyden.plan")
_preflight = LazyModule("leyden.core.preflight")
_tensorboard = LazyModule("leyden.loggers.tensorboard")
_signals = LazyModule("leyden.core.signals")
_verify = LazyModule("leyden.verify")
_legacy = LazyModule("leyden.legacy")
_table = LazyModule("leyden.utils.table")


def _takes(options: Callable[P, Any]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a method the signature of ``options``, for people, editors and type checkers alike."""

    def give(method: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        parameters = list(inspect.signature(options).parameters.values())
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        method.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        return method

    return give


class _ByRule:
    """Default of ``ckpt_path`` where None is a choice of its own."""

    def __repr__(self) -> str:
        return "by rule"


BY_RULE = _ByRule()
_OPTIONS = {option.name for option in dataclasses.fields(TrainerOptions)}


class Trainer(RunViews):
    """Trains a LightningModule.

    Its arguments are the fields of ``leyden.options.TrainerOptions``, which documents them.
    """

    @_takes(TrainerOptions)
    def __init__(self, **given: Any) -> None:
        speak_plainly()
        forget_warnings(check_argument("warnings", given.get("warnings")))
        arguments, self._given_to_fit = (given, {}) if given.keys() <= _OPTIONS else _legacy.accept(given)
        self.options = _as_trial(TrainerOptions(**arguments))
        options = self.options
        self.state = RunState()
        self.accelerator, self.strategy = resolve_hardware(
            options.accelerator,
            options.strategy,
            options.devices,
            options.num_nodes,
            options.precision,
            options.plugins,
        )
        self.loggers = self._make_loggers()
        self.callbacks = self._make_callbacks()
        self.datamodule: LightningDataModule | None = None
        self._module: LightningModule | None = None
        self._fitted: LightningModule | None = None
        self._run: Run | None = None
        self._fit_run = None
        self._torch_compile: Any = None
        if options.deterministic is not None:
            _make_deterministic(options.deterministic)
        if options.benchmark is not None or options.deterministic:
            torch.backends.cudnn.benchmark = bool(options.benchmark)

    def _make_loggers(self) -> list[Logger]:
        logger = self.options.logger
        if self.options.fast_dev_run:
            return [] if logger is False else [DummyLogger()]
        if isinstance(logger, Logger):
            return [logger]
        if logger is None or logger is True:
            if installed("tensorboard"):
                return [_tensorboard.TensorBoardLogger(self.default_root_dir)]
            return [_csv.CSVLogger(self.default_root_dir)]
        return list(logger) if logger else []

    def _make_callbacks(self) -> list[Callback]:
        """The user's callbacks and those that come by default, with checkpoints last."""
        options = self.options
        callbacks = list(options.callbacks) if isinstance(options.callbacks, list) else []

        def has(kind: type) -> bool:
            return any(isinstance(callback, kind) for callback in callbacks)

        if options.max_time is not None and not has(Timer):
            callbacks.append(Timer(options.max_time))
        if options.enable_progress_bar is not False and not has(ProgressBar):
            callbacks.append(ProgressBar())
        if options.enable_model_summary is not False and not has(ModelSummary):
            callbacks.append(ModelSummary())
        if options.enable_checkpointing is not False and not has(Checkpoint) and not options.fast_dev_run:
            callbacks.append(ModelCheckpoint())
        return _checkpoints_last(callbacks)

    # The four methods.

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **former: Unpack[FormerOfFit],
    ) -> None:
        """Train ``model``.

        Args:
            model: What to train; its step is compiled where it is what ``torch.compile`` made of a LightningModule.
            train_dataloaders: The training loader: a DataLoader or any iterable of batches; a collection of them, of
                which every batch is a collection of batches; a CombinedLoader; or a datamodule.
            val_dataloaders: The validation loader, or a list of them, or a dict, whose keys name the metrics.
            datamodule: The loaders' home, instead of the two above.
            ckpt_path: Go on from this checkpoint: a path, ``"best"``, ``"last"`` or ``"hpc"``. ``"auto"`` goes on from
                the newest good one of this run or an earlier run of the script, or starts afresh where there is none.
            weights_only: False reads arbitrary Python objects from the checkpoint, and runs whatever code it holds.

        Raises:
            MisconfigurationError: The run cannot work; the message says why and what to do.
        """
        train_dataloaders = _legacy.loaders_of("fit", train_dataloaders, former) if former else train_dataloaders
        given, datamodule = _loaders_of_fit(train_dataloaders, val_dataloaders, datamodule)
        self._complete_limits()
        self.state.should_stop, self.state.stop_reason = False, ""
        self.state.save_requests.clear()
        path = ckpt_path if ckpt_path is not None else self._given_to_fit.pop("ckpt_path", self._asked_path)
        path = _finding.find_checkpoint(self, path, "fit", weights_only)
        self._fitted = None
        self._start(Fn.FIT, model, given, datamodule, path, weights_only, fit)
        self._fitted, self._fit_run = self._module, self._run
        if self.state.stop_reason:
            say(f"Trainer.fit stopped: {self.state.stop_reason.rstrip('.')}.")

    def plan(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
    ) -> Plan:
        """Print what ``fit`` with the same arguments would do, in which order, without training; and return it.

        Datamodule and model are set up and torn down as in a fit, and make loaders and optimizers; callbacks and
        loggers are not called, no batch is read, and the Trainer, weights and random generators stay as they are.

        Raises:
            MisconfigurationError: The run cannot work, as ``fit`` would say.
        """
        given, datamodule = _loaders_of_fit(train_dataloaders, val_dataloaders, datamodule)
        kept = {name: getattr(self, name) for name in ("options", "state", "datamodule", "profiler", "_module", "_run")}
        callbacks, before, self.profiler = list(self.callbacks), self.state, _profilers.Profiler()
        self.state = RunState(fn=Fn.FIT, position=dataclasses.replace(before.position), epoch_rng=before.epoch_rng)
        try:
            self._complete_limits()
            with isolate_rng():
                plan: Plan = _plan.make_plan(self._make_run(Fn.FIT, model, given, datamodule))
        finally:
            vars(self).update(kept)
            self.callbacks[:] = callbacks
        self.print(str(plan))
        return plan

    def verify(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        steps: int = 4,
    ) -> Verification:
        """Try on a few ``steps`` whether a run goes on from a checkpoint as if it had not stopped; print the report.

        All training is done by other processes (docs/verify.md), so that everything here stays as it is.

        Returns:
            What was found; true when there is no problem.

        Raises:
            VerificationError: Training itself fails.
        """
        given, datamodule = _loaders_of_fit(train_dataloaders, val_dataloaders, datamodule)
        model = _check_model(model, Fn.FIT)
        found: Verification = _verify.verify(self, model, given["train"][0], given["val"][0], datamodule, steps)
        self.print(str(found))
        return found

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **former: Unpack[FormerOfValidate],
    ) -> Metrics:
        """Run ``validation_step`` over the validation data.

        Args:
            model: What to validate; None takes the model of the run before, with the weights of its best checkpoint.
            dataloaders: A loader; a list of them; a dict of them, whose keys name the metrics; or a datamodule.
            ckpt_path: Load this checkpoint's weights first: a path, ``"best"`` or ``"last"``.
            verbose: Print the metrics as a table.
            datamodule: The loaders' home, instead of ``dataloaders``.
            weights_only: False reads arbitrary Python objects from the checkpoint, and runs whatever code it holds.

        Returns:
            The metrics of every loader.
        """
        dataloaders = _legacy.loaders_of("validate", dataloaders, former) if former else dataloaders
        path = self._checkpoint_to_evaluate(
            model, BY_RULE if ckpt_path is None and model is None else ckpt_path, "validate"
        )
        found: Metrics = self._evaluate(Fn.VALIDATE, model, dataloaders, datamodule, path, weights_only, validate)
        if verbose:
            self._show(found, "validate")
        return found

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | _ByRule | None = BY_RULE,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **former: Unpack[FormerOfTest],
    ) -> Metrics:
        """Run ``test_step`` over the test data.

        Args:
            model: What to test; None takes the model of the run before.
            dataloaders: A loader; a list of them; a dict of them, whose keys name the metrics; or a datamodule.
            ckpt_path: Load this checkpoint's weights first: a path, ``"best"`` or ``"last"``. Left out, the model that
                was just fitted is tested with the weights of its best checkpoint, if a ModelCheckpoint has monitored a
                metric, and one line says so. None tests the weights in memory.
            verbose: Print the metrics as a table.
            datamodule: The loaders' home, instead of ``dataloaders``.
            weights_only: False reads arbitrary Python objects from the checkpoint, and runs whatever code it holds.

        Returns:
            The metrics of every loader.
        """
        dataloaders = _legacy.loaders_of("test", dataloaders, former) if former else dataloaders
        path = self._checkpoint_to_evaluate(model, ckpt_path, "test")
        found: Metrics = self._evaluate(Fn.TEST, model, dataloaders, datamodule, path, weights_only, test)
        if verbose:
            self._show(found, "test")
        return found

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **former: Unpack[FormerOfPredict],
    ) -> list[Any] | None:
        """Run ``predict_step`` over data.

        Args:
            model: What predicts; None takes the model of the run before, with the weights of its best checkpoint.
            dataloaders: A loader; a list of them; a dict of them, whose keys name the metrics; or a datamodule.
            datamodule: The loaders' home, instead of ``dataloaders``.
            return_predictions: False keeps nothing, for predictions that a callback writes away.
            ckpt_path: Load this checkpoint's weights first: a path, ``"best"`` or ``"last"``.
            weights_only: False reads arbitrary Python objects from the checkpoint, and runs whatever code it holds.

        Returns:
            What ``predict_step`` returned for every batch, on the CPU; one such list for every loader where there are
            several.
        """
        dataloaders = _legacy.loaders_of("predict", dataloaders, former) if former else dataloaders
        keep = return_predictions is not False
        path = self._checkpoint_to_evaluate(
            model, BY_RULE if ckpt_path is None and model is None else ckpt_path, "predict"
        )
        found: list[Any] | None = self._evaluate(
            Fn.PREDICT, model, dataloaders, datamodule, path, weights_only, lambda run: predict(run, keep)
        )
        return found[0] if found is not None and len(found) == 1 else found

    def _evaluate(
        self,
        fn: Fn,
        model: LightningModule | None,
        dataloaders: Any,
        datamodule: LightningDataModule | None,
        ckpt_path: str | None,
        weights_only: bool | None,
        loop: Callable[[Run], Any],
    ) -> Any:
        dataloaders, datamodule = _datamodule_in_place(dataloaders, datamodule)
        if dataloaders is not None:
            _refuse_both(datamodule, "dataloaders")
        model = model if model is not None else self._module
        if model is None:
            raise TypeError(
                f"trainer.{fn}() needs a model: trainer.{fn}(model). None was given to this Trainer before."
            )
        if dataloaders is None and datamodule is None:
            datamodule = self.datamodule
        kind = {"validate": "val"}.get(str(fn), str(fn))
        given = {kind: (dataloaders, f"{fn}(dataloaders=...)")}
        return self._start(fn, model, given, datamodule, ckpt_path, weights_only, loop)

    def _start(
        self,
        fn: Fn,
        model: LightningModule,
        given: dict[str, tuple[Any, str]],
        datamodule: LightningDataModule | None,
        ckpt_path: str | None,
        weights_only: bool | None,
        loop: Callable[[Run], Any],
    ) -> Any:
        """Prepare a run, let ``loop`` drive it, and tidy up whatever happens."""
        run = self._make_run(fn, model, given, datamodule)
        self._ckpt_path = ckpt_path
        if ckpt_path is not None:
            run.checkpoint = read_checkpoint(ckpt_path, "cpu", weights_only, self.strategy.checkpoint_io)
        self.state.fn, self.state.stage, self.state.status, self.state.signal = fn, None, Status.RUNNING, 0
        run.listening = _signals.Listening(run, self.options.preempt_grace)
        with torch.autograd.set_detect_anomaly(True) if self.options.detect_anomaly else nullcontext():
            try:
                self.strategy.setup_environment()
                prepare(run)
                run.listening.begin()
                result = loop(run)
                settle(run)
            except BaseException as error:
                if run.stopped:
                    _signals.save_stopped(run)
                fail(run, error)
                if run.stopped and isinstance(error, KeyboardInterrupt) and _signals.in_notebook():
                    return None
                raise
            finally:
                run.listening.end()
                run.listening = None
            finish(run)
        return result

    def _make_run(
        self, fn: Fn, model: LightningModule, given: dict[str, tuple[Any, str]], datamodule: LightningDataModule | None
    ) -> Run:
        wrapped, model = model, _check_model(model, fn)
        options, self._torch_compile = self.options, None
        if wrapped is not model or "_compiler_ctx" in vars(model):
            options, self._torch_compile = _compiled_module.for_run(wrapped, model, options, fn)
        if datamodule is not None and not isinstance(datamodule, LightningDataModule):
            raise TypeError(f"datamodule={datamodule!r} is not a LightningDataModule.{_datamodule_hint(datamodule)}")
        forget_warnings(self.options.warnings)
        self._module, self.datamodule = model, datamodule
        self._take_callbacks_of(model)
        sources = {}
        for kind in ("train", "val", "test", "predict"):
            loaders, argument = given.get(kind, (None, ""))
            sources[kind] = Source(kind, loaders, argument, datamodule, model, LightningModule)
        measured = type(self.profiler) is not _profilers.Profiler  # which does nothing
        make: Callable[..., Run] = partial(_profiling.ProfiledRun, self.profiler) if measured else Run
        run = make(
            trainer=self,
            fn=fn,
            options=options,
            module=model,
            datamodule=datamodule,
            callbacks=self.callbacks,
            loggers=self.loggers,
            state=self.state,
            strategy=self.strategy,
            sources=sources,
        )
        _preflight.check_run(run)  # before anybody is set up, so that nobody has to be torn down
        self._run = run
        return run

    def _take_callbacks_of(self, model: LightningModule) -> None:
        """The model's own callbacks take the place of those of their class."""
        own = model.configure_callbacks()
        own = list(own) if isinstance(own, list | tuple) else [] if own is None else [own]
        if own:
            kept = [c for c in self.callbacks if not any(isinstance(new, type(c)) for new in own) and c not in own]
            self.callbacks[:] = _checkpoints_last([*kept, *own])

    def _complete_limits(self) -> None:
        """Settle when training ends where nothing was said, and say so when there is nothing left to do."""
        options, position = self.options, self.state.position
        forget_warnings(options.warnings)
        if options.max_epochs is None:
            endless = options.max_steps == -1 and not any(isinstance(c, Timer) for c in self.callbacks)
            if endless:
                warn("LD060", "Trainer(max_epochs=None) trains for 1000 epochs. Give max_epochs; -1 is no limit.")
            self.options = dataclasses.replace(options, max_epochs=1000 if endless else -1)
        limit = self.options.max_epochs
        if position.epoch and limit is not None and limit != -1 and position.epoch >= limit:
            warn(
                "LD061",
                f"This Trainer has completed its max_epochs={limit} epochs, so fit has nothing to do. "
                "Make a new Trainer to start again, or one with a larger max_epochs to go on.",
            )
        elif position.global_step and options.max_steps != -1 and position.global_step >= options.max_steps:
            warn(
                "LD061",
                f"This Trainer has taken its max_steps={options.max_steps} steps, so fit has nothing to do. "
                "Make a new Trainer to start again, or one with a larger max_steps to go on.",
            )

    # Checkpoints.

    def save_checkpoint(
        self, filepath: str | os.PathLike[str], weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Write a checkpoint at once.

        Args:
            filepath: Where to, local or remote.
            weights_only: Leave out what only resuming needs.
            storage_options: For the CheckpointIO plugin.

        Raises:
            AttributeError: No model was given to this Trainer yet.
            CheckpointError: The file could not be written.
        """
        run, before = self._run, self._fit_run
        if run is None:
            raise AttributeError("trainer.save_checkpoint() needs a model: call trainer.fit(model) first.")
        if run.fn is not Fn.FIT and before is not None and before.module is run.module:
            run = before  # which has the optimizers
        write(run, capture(run, bool(weights_only)), os.fspath(filepath), storage_options)

    def request_checkpoint(
        self,
        path: str,
        *,
        weights_only: bool = False,
        written: Callable[[str], None] | None = None,
        failed: Callable[[str, Exception], None] | None = None,
        in_background: bool = False,
    ) -> None:
        """Ask for a checkpoint at the next safe point: no hook half done, no gradient half accumulated.

        Args:
            path: Where to, local or remote.
            weights_only: Leave out what only resuming needs.
            written: Called with ``path`` when the file is safe on disk.
            failed: Called with ``path`` and the error where it cannot be written, instead of ending the run.
            in_background: Go on with training while the file is written.
        """
        request = SaveRequest(path, weights_only, self.state.position.epoch, written, failed, in_background)
        self.state.save_requests.append(request)

    def _checkpoint_to_evaluate(self, model: LightningModule | None, path: Any, method: str) -> str | None:
        forget_warnings(self.options.warnings)
        path = self._asked_path if self._asked_path and (path is None or path is BY_RULE) else path
        if not isinstance(path, _ByRule):
            found: str | None = _finding.find_checkpoint(self, path, method)
            return found
        just_fitted = self._fitted is not None and getattr(model, "_orig_mod", model) in (None, self._fitted)
        monitored = any(getattr(c, "monitor", None) for c in self.checkpoint_callbacks)
        if not just_fitted or not (monitored or model is None) or not _finding.best_checkpoint(self):
            return None
        best: str = _finding.best_good_checkpoint(self, method)
        say(
            f"trainer.{method}() uses the best checkpoint, {shown(best)}. "
            + ("For the weights in memory pass ckpt_path=None." if method == "test" else "For others pass ckpt_path=.")
        )
        return best

    # What modules and callbacks ask for.

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        bar = self.progress_bar_callback
        if bar is not None:
            bar.print(*args, **kwargs)
        elif self.is_global_zero:
            print(*args, **kwargs)

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Inside, modules are made on the Trainer's device in its number type.

        Args:
            empty_init: True leaves parameters uninitialised, to be loaded from a checkpoint.
        """
        init = self.strategy.precision.init_context()
        with torch.device(self.strategy.device), init, _uninitialised(bool(empty_init)):
            yield

    def add_callback_metrics(self, values: dict[str, Any]) -> None:
        """Show ``values`` among ``callback_metrics``, where other callbacks can monitor them."""
        if self._run is not None:
            self._run.results.add_callback_metrics(values)

    def _tell_loggers(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._running.guard.tell(self.loggers, method, *args, **kwargs)

    def _show(self, found: list[dict[str, float]], method: str) -> None:
        """Print the metrics of an evaluation, a column for each loader."""
        if not any(found) or not self.is_global_zero:
            return
        names = list(dict.fromkeys(name for metrics in found for name in metrics))
        heads = [f"{method} metric", *(f"loader {i}" if len(found) > 1 else "value" for i in range(len(found)))]
        rows = [[name, *(_number(metrics.get(name)) for metrics in found)] for name in names]
        self.print(_table.draw_table(heads, rows))

    def _clip_gradients(self, optimizer: Any, value: int | float | None, algorithm: str | None) -> None:
        value = self.options.gradient_clip_val if value is None else value
        algorithm = algorithm or self.options.gradient_clip_algorithm or "norm"
        if value:
            self.strategy.precision.clip_gradients(optimizer, value, algorithm)

    def _manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        run = self._running
        if run.window.share != 1:
            loss = loss / run.window.share
        if fire := run.hooks.on_before_backward:
            fire(loss)
        run.backward(loss, *args, **kwargs)
        if fire := run.hooks.on_after_backward:
            fire()

    def _wrapped_optimizers(self) -> list[SteppingOptimizer]:
        return self._running.wrapped_optimizers


def _as_trial(options: TrainerOptions) -> TrainerOptions:
    """``options`` as ``fast_dev_run`` and ``overfit_batches`` change them."""
    if options.overfit_batches:
        options = dataclasses.replace(
            options, limit_train_batches=options.overfit_batches, limit_val_batches=options.overfit_batches
        )
    if not options.fast_dev_run:
        return options
    batches = int(options.fast_dev_run)
    return dataclasses.replace(
        options,
        max_epochs=1,
        min_epochs=None,
        max_steps=batches,
        min_steps=None,
        num_sanity_val_steps=0,
        val_check_interval=1.0,
        check_val_every_n_epoch=1,
        limit_train_batches=batches,
        limit_val_batches=batches,
        limit_test_batches=batches,
        limit_predict_batches=batches,
        log_every_n_steps=1,
    )


def _checkpoints_last(callbacks: list[Callback]) -> list[Callback]:
    """``callbacks`` with those that save behind the others, so that they save what the others did."""
    return sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))


def _datamodule_in_place(loaders: Any, datamodule: Any) -> tuple[Any, Any]:
    """A datamodule given in the place of loaders is moved to its own."""
    if isinstance(loaders, LightningDataModule):
        if datamodule is not None:
            raise MisconfigurationError("Two datamodules were given. Give one.")
        return None, loaders
    return loaders, datamodule


def _loaders_of_fit(train: Any, val: Any, datamodule: Any) -> tuple[dict[str, tuple[Any, str]], Any]:
    """What fit was given, by kind, with the arguments' names; and the datamodule."""
    train, datamodule = _datamodule_in_place(train, datamodule)
    if train is not None or val is not None:
        _refuse_both(datamodule, "train_dataloaders or val_dataloaders")
    return {"train": (train, "fit(train_dataloaders=...)"), "val": (val, "fit(val_dataloaders=...)")}, datamodule


def _refuse_both(datamodule: Any, loaders: str) -> None:
    if datamodule is not None:
        raise MisconfigurationError(f"Both {loaders} and a datamodule were given. Give one of them.")


def _datamodule_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, LightningDataModule):
        return f" Make an instance: {given.__name__}(...)."
    if _of_lightning(given):
        return " It is one of Lightning's: import LightningDataModule from leyden."
    return " Pass loaders as train_dataloaders= and val_dataloaders=, or dataloaders=."


def _of_lightning(given: Any) -> bool:
    return any(cls.__module__.partition(".")[0] in ("lightning", "pytorch_lightning") for cls in type(given).__mro__)


def _check_model(model: Any, fn: Fn) -> LightningModule:
    if isinstance(model, LightningModule):
        return model
    if isinstance(model, torch.nn.Module) and isinstance(module := model._modules.get("_orig_mod"), LightningModule):
        return module  # which torch.compile has wrapped
    if isinstance(model, type) and issubclass(model, LightningModule):
        raise TypeError(f"trainer.{fn} got the class {model.__name__}. Make an instance: {model.__name__}(...).")
    hint = ""
    if _of_lightning(model):
        hint = " It is one of Lightning's: import LightningModule from leyden."
    elif isinstance(model, torch.nn.Module):
        hint = " Make it an attribute of a LightningModule, which says how it is trained."
    raise TypeError(f"trainer.{fn} needs a LightningModule, got {type(model).__name__}.{hint}")


def _make_deterministic(deterministic: bool | str) -> None:
    torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        # cuBLAS is deterministic only with a fixed workspace: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def _uninitialised(really: bool) -> Iterator[None]:
    """Inside, parameters of new modules keep whatever their memory holds."""
    if not really:
        yield
        return
    from torch.overrides import TorchFunctionMode

    class SkipInit(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            return function(*args, **kwargs)

    with SkipInit():
        yield


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
