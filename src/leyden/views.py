"""RunViews: what can be read from a Trainer about its run."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import Checkpoint
from leyden.callbacks.progress import ProgressBar
from leyden.core.callback import Callback
from leyden.core.combined import CombinedLoader
from leyden.core.module import LightningModule
from leyden.core.optimizers import LRSchedulerConfig
from leyden.core.run import Run
from leyden.core.state import Fn, RunState, Stage, Status
from leyden.fabric.precision import Precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.logger import Logger
from leyden.option_checks import make_profiler
from leyden.options import TrainerOptions
from leyden.utils.errors import MisconfigurationError, nearest
from leyden.utils.lazy import LazyModule

if TYPE_CHECKING:
    import argparse

    from leyden.core.time_report import TimeReport
    from leyden.loop_views import EvaluationLoopView, FitLoopView
    from leyden.profilers.profiler import Profiler

Self = TypeVar("Self", bound="RunViews")

_legacy = LazyModule("leyden.legacy")
_loops = LazyModule("leyden.loop_views")
_arguments = LazyModule("leyden.utils.arguments")
_time_report = LazyModule("leyden.core.time_report")


class CallbackMetrics(dict[str, Tensor]):
    """The values as they are; those that are put into it are shown from then on, and can be monitored."""

    def __init__(self, run: Run | None) -> None:
        super().__init__(run.results.callback_metrics() if run is not None else {})
        self._run = run

    def __setitem__(self, name: str, value: Any) -> None:
        if self._run is None:
            raise RuntimeError("trainer.callback_metrics takes no values before the first run.")
        self._run.results.add_callback_metrics({name: value})
        super().__setitem__(name, torch.as_tensor(value))

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, and what is written to a file, knows no run. OrderedDict is a name that torch's safe reader accepts.
        return OrderedDict, (), None, None, iter(self.items())

    def update(self, values: Mapping[str, Any] = {}, /, **more: Any) -> None:  # type: ignore[override]
        """Put several values in."""
        for name, value in {**values, **more}.items():
            self[name] = value

    def setdefault(self, name: str, value: Any = math.nan, /) -> Any:
        """The value; where there is none, ``value``, which is put in."""
        if name not in self:
            self[name] = value
        return self[name]


class RunViews:
    """The Trainer's attributes and properties; what changes is in ``state``, and the run writes it.

    Attributes:
        options: The arguments in force.
        state: Where the run stands.
        callbacks: All callbacks, in the order in which they are called; the list may be changed between epochs.
        strategy: The device.
        loggers: Where values go; the first one's folder also takes the checkpoints.
    """

    options: TrainerOptions
    state: RunState
    callbacks: list[Callback]
    strategy: Strategy
    loggers: list[Logger]
    _ckpt_path: str | None = None
    _asked_path: str | None = None
    _module: LightningModule | None = None
    _run: Run | None = None
    _fit_run: Run | None = None

    @property
    def _training_run(self) -> Run | None:
        """The fit that is running, or ran last."""
        return self._run if self._run is not None and self._run.fn is Fn.FIT else self._fit_run

    @property
    def _running(self) -> Run:
        if self._run is None:
            raise RuntimeError("There is no run: this works inside trainer.fit().")
        return self._run

    # Where the run stands.

    @property
    def current_epoch(self) -> int:
        """Index of the epoch in progress, which is the number of completed epochs."""
        return self.state.position.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; one a batch in automatic optimization, one each ``optimizer.step()`` in manual."""
        return self.state.position.global_step

    @property
    def time_report(self) -> TimeReport | None:
        """Where the time of the fit goes that is running or ran last: a table with advice; None before the first."""
        run = self._training_run
        return None if run is None else _time_report.make_report(run)

    @property
    def should_stop(self) -> bool:
        """Somebody asked for the end of training. Setting it asks; min_epochs and min_steps are waited for."""
        return self.state.should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self.state.should_stop = bool(stop)

    @property
    def is_last_batch(self) -> bool:
        """The batch in work is the epoch's last."""
        run = self._run
        return run is not None and hasattr(run, "train") and run.train.is_last

    def _in_stage(self, *stages: Stage) -> bool:
        return self.state.stage in stages

    @property
    def training(self) -> bool:
        """The training loop is running, and not validation inside it."""
        return self._in_stage(Stage.TRAIN)

    @property
    def validating(self) -> bool:
        """Validation is running."""
        return self._in_stage(Stage.VALIDATE)

    @property
    def testing(self) -> bool:
        """The test is running."""
        return self._in_stage(Stage.TEST)

    @property
    def predicting(self) -> bool:
        """Prediction is running."""
        return self._in_stage(Stage.PREDICT)

    @property
    def sanity_checking(self) -> bool:
        """The validation batches before training are being tried."""
        return self._in_stage(Stage.SANITY_CHECK)

    @property
    def evaluating(self) -> bool:
        """Validation or the test is running."""
        return self._in_stage(Stage.VALIDATE, Stage.TEST)

    @property
    def interrupted(self) -> bool:
        """The last run was broken off by an exception."""
        return self.state.status is Status.INTERRUPTED

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that the run began with; setting it gives one to all runs to come that name none."""
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, path: str | os.PathLike[str] | None) -> None:
        self._ckpt_path = self._asked_path = None if path is None else os.fspath(path)

    # Views: values.

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of everything logged, tensors of shape ``()``. Values put into it can be monitored too."""
        return CallbackMetrics(self._run)

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What was sent to the loggers last, by name."""
        sent = self._run.results.logged_metrics if self._run is not None else {}
        return {name: torch.as_tensor(value) for name, value in sent.items()}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest values logged with ``prog_bar=True``; reading them waits for the device."""
        return self._run.results.bar_metrics() if self._run is not None else {}

    # Views: parts of the run.

    @property
    def lightning_module(self) -> LightningModule | None:
        """The module of the run; None before the first."""
        return self._module

    model = lightning_module

    @property
    def optimizers(self) -> list[Optimizer]:
        """What ``configure_optimizers`` returned; setting it replaces them one by one, up to on_fit_start."""
        run = self._training_run
        return run.optimizers if run is not None else []

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self._running.take_optimizers(optimizers)

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The learning-rate schedulers, and when they step."""
        run = self._training_run
        return run.schedulers if run is not None else []

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers[:] = [logger] if logger is not None else []

    @property
    def log_dir(self) -> str:
        """The first logger's folder for this run, or else ``default_root_dir``."""
        logger = self.logger
        return (logger.log_dir or logger.save_dir if logger is not None else None) or self.default_root_dir

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go that have no other place; by default the working directory."""
        root = self.options.default_root_dir
        return os.getcwd() if root is None else os.fspath(root)

    @cached_property
    def profiler(self) -> Profiler:
        """Who measures the run: by default a Profiler that measures nothing."""
        made: Profiler = make_profiler(self.options.profiler)
        return made

    @property
    def precision(self) -> str:
        """The precision's full name, such as ``"32-true"``."""
        return self.strategy.precision.name

    @property
    def precision_plugin(self) -> Precision:
        """The precision itself."""
        return self.strategy.precision

    @property
    def scaler(self) -> Any:
        """The gradient scaler of ``"16-mixed"``; None otherwise."""
        return getattr(self.strategy.precision, "scaler", None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar."""
        return next((c for c in self.callbacks if isinstance(c, ProgressBar)), None)

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first callback that saves checkpoints."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All EarlyStopping callbacks."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first EarlyStopping callback."""
        return next(iter(self.early_stopping_callbacks), None)

    # Views: the data.

    @property
    def train_dataloader(self) -> Any:
        """The training loader, or the collection of them as it was given; None until fit has asked for it."""
        run = self._training_run
        loader = run.train.loader if run is not None and hasattr(run, "train") else None
        return loader.iterables if isinstance(loader, CombinedLoader) else loader

    def _loaded(self, kind: str) -> Any:
        found = [run.sources[kind].loaded for run in (self._run, self._fit_run) if run is not None]
        return next((loaders for loaders in found if loaders is not None), None)

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader or loaders, as they were given; None until they were asked for."""
        return self._loaded("val")

    @property
    def test_dataloaders(self) -> Any:
        """The test loader or loaders, as they were given; None until they were asked for."""
        return self._loaded("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loader or loaders, as they were given; None until they were asked for."""
        return self._loaded("predict")

    @property
    def num_training_batches(self) -> int | float:
        """Training batches of an epoch; ``inf`` when that is not known."""
        run = self._training_run
        return run.train.count if run is not None and hasattr(run, "train") else math.inf

    def _counts(self, stage: Stage) -> list[int | float]:
        found = [run.evaluation_counts(stage) for run in (self._run, self._fit_run) if run is not None]
        return next(filter(None, found), [])

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader that are tried before training."""
        return self._counts(Stage.SANITY_CHECK)

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self._counts(Stage.VALIDATE)

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self._counts(Stage.TEST)

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each prediction loader."""
        return self._counts(Stage.PREDICT)

    @property
    def enable_validation(self) -> bool:
        """Validation runs inside this fit."""
        return self._run is not None and self._run.validates

    @property
    def validate_once_per_epoch(self) -> bool:
        """Validation runs once in an epoch, at its end."""
        run, options = self._run, self.options
        return (
            run is not None
            and options.check_val_every_n_epoch is not None
            and run.validation_seconds == math.inf
            and run.validation_interval in (math.inf, self.num_training_batches)
        )

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit; ``inf`` when there is no end in sight.

        Asks for the training loader where fit has not yet, so that schedulers can be made in configure_optimizers.

        Raises:
            MisconfigurationError: It cannot be known: the training loader has no length and max_steps is not given.
        """
        options, run = self.options, self._running
        if options.max_epochs == -1 or options.max_epochs is None:
            return math.inf if options.max_steps == -1 else options.max_steps
        if not hasattr(run, "train"):
            run.load_training_data()
        if run.train.count == math.inf:
            if options.max_steps != -1:
                return options.max_steps
            raise MisconfigurationError(
                "trainer.estimated_stepping_batches cannot be known: the training loader has no length. "
                "Give Trainer(max_steps=...)."
            )
        steps = math.ceil(run.train.count / options.accumulate_grad_batches) * options.max_epochs
        return steps if options.max_steps == -1 else min(steps, options.max_steps)

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches whose gradients make one optimizer step; may be set, to hold from the next batch on."""
        return self.options.accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, batches: int) -> None:
        self.options = dataclasses.replace(self.options, accumulate_grad_batches=batches)
        if self._run is not None:
            self._run.accumulate_over(batches)

    @property
    def log_every_n_steps(self) -> int:
        """Step values go to the loggers after every so many batches that stepped; 0 for never."""
        return 50 if self.options.log_every_n_steps is None else self.options.log_every_n_steps

    @log_every_n_steps.setter
    def log_every_n_steps(self, steps: int) -> None:
        self._set_option("log_every_n_steps", steps)

    # Views: the place of this process.

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """Index of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Index of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """This is the process that prints, logs and writes."""
        return self.strategy.is_global_zero

    @property
    def num_devices(self) -> int:
        """Devices of this machine in use."""
        return 1

    @property
    def device_ids(self) -> list[int]:
        """Indices of the devices in use."""
        return [self.strategy.device.index or 0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """What a DistributedSampler is made with, so that each process has its share; None where there is one."""
        return {"num_replicas": self.world_size, "rank": self.global_rank} if self.world_size > 1 else None

    @property
    def received_sigterm(self) -> bool:
        """The process was asked to end, by SIGTERM."""
        return getattr(self.state, "signal", None) == signal.SIGTERM

    # Views: the loops, for code that looks into them.

    @property
    def fit_loop(self) -> FitLoopView:
        """Where training stands, by Lightning's names; its limits can be set."""
        view: FitLoopView = _loops.FitLoopView(self)
        return view

    def _evaluation_loop(self, place: str, kind: str) -> EvaluationLoopView:
        view: EvaluationLoopView = _loops.EvaluationLoopView(self, place, kind)
        return view

    @property
    def validate_loop(self) -> EvaluationLoopView:
        """What validation reads, by Lightning's names."""
        return self._evaluation_loop("validate_loop", "val")

    @property
    def test_loop(self) -> EvaluationLoopView:
        """What the test reads, by Lightning's names."""
        return self._evaluation_loop("test_loop", "test")

    @property
    def predict_loop(self) -> EvaluationLoopView:
        """What prediction reads, by Lightning's names."""
        return self._evaluation_loop("predict_loop", "predict")

    # Arguments from the command line, as in Lightning 1.x.

    @classmethod
    def add_argparse_args(cls, parent_parser: argparse.ArgumentParser, **options: Any) -> argparse.ArgumentParser:
        """Give ``parent_parser`` an option for every argument of the Trainer, such as ``--max_epochs``."""
        parser: argparse.ArgumentParser = _legacy.add_argparse_args(cls, parent_parser, **options)
        return parser

    @classmethod
    def from_argparse_args(cls: type[Self], args: Any, **arguments: Any) -> Self:
        """A Trainer with what was given on the command line; ``arguments`` come first."""
        trainer: Self = _legacy.from_argparse_args(cls, args, arguments)
        return trainer

    @classmethod
    def parse_argparser(cls, arg_parser: Any) -> argparse.Namespace:
        """What the parser reads from the command line."""
        found: argparse.Namespace = _arguments.parsed(arg_parser)
        return found

    if TYPE_CHECKING:
        # The remaining options, by their own names.
        def __getattr__(self, name: str) -> Any: ...

    else:

        def __getattr__(self, name: str) -> Any:
            if name in _OPTION_VIEWS:
                value = getattr(self.options, name)
                return _MEANT_BY_NONE.get(name) if value is None else value
            if not name.startswith("_") and name in _legacy.ATTRIBUTES:
                return _legacy.attribute(self, name)
            public = [each for each in (*dir(type(self)), *_OPTION_VIEWS) if not each.startswith("_")]
            raise AttributeError(f"Trainer has no attribute {name!r}.{nearest(name, public)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OPTION_VIEWS:
            self._set_option(name, value)
        else:
            super().__setattr__(name, value)

    def _set_option(self, name: str, value: Any) -> None:
        """Change an argument for the runs to come, and for the one that goes on where that can still follow it."""
        if name in ("fast_dev_run", "num_nodes", "overfit_batches"):
            raise AttributeError(f"trainer.{name} cannot be set, as other arguments depend on it: Trainer({name}=...).")
        running = self._run is not None and self.state.status is Status.RUNNING
        if running and name not in _FOLLOWED:
            raise AttributeError(
                f"trainer.{name} cannot be set while a run goes on. Set it before, or by Trainer(...)."
            )
        self.options = dataclasses.replace(self.options, **{name: value})
        if running:
            self._running.follow(dataclasses.replace(self._running.options, **{name: value}))


# What these are when nobody has set them.
_MEANT_BY_NONE = {
    **{f"limit_{kind}_batches": 1.0 for kind in ("train", "val", "test", "predict")},
    "val_check_interval": 1.0,
    "num_sanity_val_steps": 2,
}
# Options that a run in progress asks for again, whenever they count.
_FOLLOWED = frozenset(("check_val_every_n_epoch", "max_epochs", "max_steps", "min_epochs", "min_steps"))
# Options that can be read from the Trainer under their own name; to be set, see _set_option.
_OPTION_VIEWS = frozenset(
    (
        "check_val_every_n_epoch",
        "fast_dev_run",
        "gradient_clip_algorithm",
        "gradient_clip_val",
        "limit_predict_batches",
        "limit_test_batches",
        "limit_train_batches",
        "limit_val_batches",
        "max_epochs",
        "max_steps",
        "min_epochs",
        "min_steps",
        "num_nodes",
        "num_sanity_val_steps",
        "overfit_batches",
        "reload_dataloaders_every_n_epochs",
        "val_check_interval",
    )
)
