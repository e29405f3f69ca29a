"""TrainerOptions: every argument of the Trainer, with its default, its documentation and its checks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from leyden.callbacks.model_checkpoint import Checkpoint
from leyden.callbacks.progress import ProgressBar
from leyden.callbacks.timer import Timer
from leyden.core.callback import Callback
from leyden.fabric.accelerators import Accelerator
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import Precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.logger import Logger
from leyden.option_checks import check_argument
from leyden.utils.errors import MisconfigurationError, warn

if TYPE_CHECKING:
    from leyden.profilers.profiler import Profiler
else:
    Profiler = Any  # imported only when somebody asks for one


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """The arguments of ``Trainer(...)``, checked; all by keyword.

    A *batch* is one of the training loader, a *step* is one of the optimizer. Where an argument takes ``int | float``,
    a float is a fraction and an int a number of batches: 1.0 is everything and 1 is one batch. NumPy's numbers count
    as Python's, and whole floats such as 1e6 as ints where only a number of things makes sense.

    What is kept may differ from what was given: ``precision`` has its full name, collections are new lists, one
    callback or plugin is a list of one, and ``barebones`` has turned off what it turns off. None stays None.

    Raises:
        TypeError: An argument is of a wrong type.
        MisconfigurationError: A ValueError; an argument is out of range or unknown, or two contradict each other.
        NotBuiltError: A MisconfigurationError; Lightning has what is asked for, Leyden has not yet.

    Attributes:
        accelerator: The kind of device: ``"cpu"``, ``"cuda"``, ``"mps"``, ``"gpu"`` (the kind of GPU that is here) or
            ``"auto"`` (a GPU if there is one, else the CPU), or an Accelerator.
        strategy: How the devices work together; ``"auto"`` suits what ``devices`` says. A name or a Strategy.
        devices: Their number, -1 for all, a list or string of indices such as ``[0, 1]`` or ``"0,1"``, or ``"auto"``.
        num_nodes: Number of machines. More than 1 is not built yet.
        precision: Number types of weights and computation: ``"32-true"`` (also 32; what None means), ``"16-mixed"``
            (16), ``"bf16-mixed"`` (``"bf16"``), ``"16-true"``, ``"bf16-true"`` or ``"64-true"`` (64).
        logger: Where values go: a Logger or several (the first one's folder also takes the checkpoints), True for the
            default one (what None means), False or ``[]`` for none.
        callbacks: What happens beside training: a Callback or a list of them. A ModelCheckpoint, a progress bar and a
            model summary are added where the list has none, unless the ``enable_`` arguments say no.
        fast_dev_run: Try the code: True takes 1 batch of each kind of loader, n takes n, for one epoch, without
            loggers, checkpoints and early stopping. False or 0 is a normal run.
        max_epochs: Number of epochs after which training ends, 0 for none, -1 for no limit. None is 1000 if neither
            ``max_steps`` nor a time limit is given either, else no limit.
        min_epochs: Number of epochs before which requests to stop early have to wait. None is no minimum.
        max_steps: Number of optimizer steps after which training ends, 0 for none, -1 for no limit. The first limit
            that is reached counts.
        min_steps: Number of optimizer steps before which requests to stop early have to wait. None is no minimum.
        max_time: Time after which training ends: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments such as
            ``{"hours": 8}``. None is no limit. A Timer among the callbacks takes its place.
        limit_train_batches: How much of the training data an epoch uses: a float from 0.0 to 1.0 is a fraction, an
            int a number of batches, 0 is no training. None is all.
        limit_val_batches: The same for each validation loader; 0 never validates.
        limit_test_batches: The same for each test loader.
        limit_predict_batches: The same for each prediction loader.
        overfit_batches: See whether the model can learn a little data by heart: a fraction or a number of batches for
            training and validation, each from its own loader, the same ones in every epoch. Takes the place of
            ``limit_train_batches`` and ``limit_val_batches``. 0.0 is a normal run.
        val_check_interval: How often to validate: a float above 0.0 is a fraction of an epoch (0.25: four times an
            epoch), an int a number of batches within an epoch, or over all epochs if ``check_val_every_n_epoch`` is
            None. A time, given as ``max_time`` is: after the batch in which so much has passed since the last
            validation. None is 1.0, the end of the epoch.
        check_val_every_n_epoch: Validate in every n-th epoch only. None lets ``val_check_interval`` count batches
            across epochs; without one it means 1.
        num_sanity_val_steps: Number of batches of each validation loader to try before training; 0 for none, -1 for
            all. None is 2.
        log_every_n_steps: Send what is logged by step to the loggers after every n-th batch that stepped the
            optimizer; 0 is never. None is 50. Values by epoch are always sent.
        enable_checkpointing: Add a ModelCheckpoint if ``callbacks`` has none. None is True.
        enable_progress_bar: Add a progress bar if ``callbacks`` has none. None is True.
        enable_model_summary: Print the model's layers before training. None is True.
        accumulate_grad_batches: Number of batches whose gradients one optimizer step uses.
        gradient_clip_val: Largest norm or value of gradients, from 0 up. None and 0 do not clip.
        gradient_clip_algorithm: ``"norm"`` scales all gradients together until their norm fits (what None means),
            ``"value"`` clips each number by itself.
        deterministic: True uses deterministic algorithms only, and fails where there is none; ``"warn"`` warns there.
            None leaves torch as it is, False turns them off.
        benchmark: Let cuDNN measure which algorithms are fastest for the shapes it meets. None leaves torch as it is,
            except under ``deterministic``, which turns it off.
        inference_mode: Validate, test and predict under ``torch.inference_mode``, or under ``torch.no_grad`` if False.
            Validation within fit always uses ``no_grad``.
        use_distributed_sampler: Give each process its own share of the data. With one process, which is what is built
            yet, True and False mean the same.
        profiler: Measure where the time goes, and report at the end of the run: ``"simple"`` (time and number of calls
            of each part), ``"advanced"`` (the functions inside, by cProfile), ``"pytorch"`` (operators and kernels of
            a few batches), or a Profiler. None measures nothing and costs nothing.
        detect_anomaly: Find the operation whose gradient is NaN, by ``torch.autograd.set_detect_anomaly``; slow.
        barebones: Measure the bare loop: no checkpoints, loggers, bar, summary, sanity check and logged values. Asking
            for one of them, or for ``fast_dev_run``, ``detect_anomaly`` or a profiler, contradicts it.
        plugins: A CheckpointIO, which writes and reads checkpoint files, a Precision, or one of each in a list.
        sync_batchnorm: Not built yet: only False.
        reload_dataloaders_every_n_epochs: Ask ``train_dataloader()`` again at the start of every n-th epoch, and
            ``val_dataloader()`` before the first validation from there on. 0 makes the loaders once.
        default_root_dir: Folder of logs and checkpoints that have no other place. None is the working directory.
        enable_autolog_hparams: Send the hyper-parameters and the graph to the loggers when a run starts.
        model_registry: Not built yet: only None.
        suggest_integrations: Leyden never advertises, so True and False mean the same.
        on_nonfinite_loss: What to do when the loss of a batch is NaN or infinite: ``"stop"`` raises NonFiniteLossError
            before the weights change, says where in the module it arose, and writes the step to a file for
            ``leyden replay``; ``"ignore"`` does not look.
        warnings: What to do about warnings, by their id, such as ``{"LD031": "ignore"}``: ``"ignore"``, ``"error"``
            (raise it), ``"always"`` (each time) or ``"once"`` (once a run, which is what None means for all). Holds
            until another Trainer is made or runs.
        preempt_grace: Seconds that the batch in work may take to end once SIGTERM, SIGINT, SIGUSR1 or SIGHUP asks the
            process to stop. Then training is saved as ``preempt.ckpt`` beside the other checkpoints, and the process
            ends with 128 and the signal's number; with nothing saved, if the batch takes longer.
        fast_paths: Take the shorter ways to the same numbers, where they are known to be the same to the last bit:
            torch's SGD, Adam and AdamW by torch's kernels without the Python around them, the backward pass likewise,
            and batches gathered from data in memory. On a GPU batches are copied beside the step before, and Adam and
            AdamW that were not told how to step do so by their fused kernels, which round otherwise. False goes the
            usual ways, to measure or to look for a mistake.
        compile: Compile the training step by ``torch.compile``: ``"model"`` (forward and loss), ``"step"`` (backward,
            clipping and the optimizer's step too, as one graph), or ``"auto"``, which measures a few steps and takes
            what is fastest. What cannot be compiled runs as it is, and a warning says why. Results are the same but
            for rounding. None or False compiles nothing.
    """

    accelerator: str | Accelerator = "auto"
    strategy: str | Strategy = "auto"
    devices: list[int] | str | int = "auto"
    num_nodes: int = 1
    precision: int | str | None = None
    logger: Logger | Iterable[Logger] | bool | None = None
    callbacks: list[Callback] | Callback | None = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | timedelta | dict[str, int] | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | str | timedelta | dict[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | Profiler | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Precision | CheckpointIO | list[Precision | CheckpointIO] | None = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | os.PathLike[str] | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None
    suggest_integrations: bool = True
    on_nonfinite_loss: Literal["stop", "ignore"] = "stop"
    warnings: dict[str, str] | None = None
    preempt_grace: float = 25.0
    fast_paths: bool = True
    compile: Literal["model", "step", "auto"] | None = None

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            if (given := getattr(self, name)) is not default:  # which passes its check, and is kept as it is
                self._keep(name, check_argument(name, given))
        _check_durations(self)
        _check_validation_interval(self)
        if self.val_check_interval is None and self.check_val_every_n_epoch is None:
            self._keep("check_val_every_n_epoch", 1)
        if self.barebones:
            _check_barebones(self)
            for name, value in _BARE.items():
                self._keep(name, value)
        _check_callbacks(self)
        _check_precision(self)
        _warn_of_what_is_ignored(self)

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the class is frozen


_DEFAULTS = {option.name: option.default for option in fields(TrainerOptions)}
# What barebones=True turns off, and how.
_BARE = {
    "logger": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _check_durations(options: TrainerOptions) -> None:
    """Refuse a minimum above its maximum."""
    for lower, upper in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        least, most = getattr(options, lower), getattr(options, upper)
        if least is not None and most is not None and most != -1 and least > most:
            raise MisconfigurationError(
                f"{lower}={least} is more than {upper}={most}. Raise {upper}, lower {lower}, or set {upper}=-1."
            )


def _check_validation_interval(options: TrainerOptions) -> None:
    """Refuse a fraction of an epoch where epochs do not count."""
    if options.check_val_every_n_epoch is None and isinstance(options.val_check_interval, float):
        raise MisconfigurationError(
            f"val_check_interval={options.val_check_interval} is a fraction of an epoch, but with "
            "check_val_every_n_epoch=None batches count across epochs. Give val_check_interval a number of batches."
        )


def _check_barebones(options: TrainerOptions) -> None:
    """Refuse what barebones turns off, if it is asked for."""
    given = {name: getattr(options, name) for name in (*_BARE, "fast_dev_run", "detect_anomaly", "profiler")}
    if wanted := [f"{name}={value!r}" for name, value in given.items() if value]:
        raise MisconfigurationError(
            f"barebones=True contradicts {', '.join(wanted)}: it leaves out whatever costs time. Give one or the other."
        )


def _check_callbacks(options: TrainerOptions) -> None:
    """Refuse callbacks that the ``enable_`` arguments turn off, and a second progress bar."""
    callbacks = options.callbacks if isinstance(options.callbacks, list) else []
    because = " (barebones=True sets it)" if options.barebones else ""
    for kind, switch in ((Checkpoint, "enable_checkpointing"), (ProgressBar, "enable_progress_bar")):
        names = [type(callback).__name__ for callback in callbacks if isinstance(callback, kind)]
        if names and getattr(options, switch) is False:
            raise MisconfigurationError(
                f"{switch}=False{because} contradicts the {names[0]} in callbacks. Leave one of them out."
            )
        if kind is ProgressBar and len(names) > 1:
            raise MisconfigurationError(f"callbacks has {len(names)} progress bars: {', '.join(names)}. Give one.")


def _check_precision(options: TrainerOptions) -> None:
    """Refuse a precision given twice."""
    plugins = options.plugins if isinstance(options.plugins, list) else []
    for plugin in plugins:
        if isinstance(plugin, Precision) and options.precision is not None:
            raise MisconfigurationError(
                f"precision={options.precision!r} and the {type(plugin).__name__} in plugins both set the precision. "
                "Leave one of them out."
            )


def _warn_of_what_is_ignored(options: TrainerOptions) -> None:
    if options.deterministic and options.benchmark:
        warn(
            "LD172",
            f"deterministic={options.deterministic!r} and benchmark=True contradict each other: benchmark lets cuDNN "
            "choose algorithms by their speed, so runs may differ. Leave benchmark out.",
        )
    overfit = options.overfit_batches
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = getattr(options, name)
        same = limit == overfit and type(limit) is type(overfit)  # 1 and 1.0 are not
        if overfit and limit is not None and not same and not options.fast_dev_run:  # which sets both
            warn("LD173", f"{name}={limit} is ignored, because overfit_batches={overfit} sets it.", subject=name)
    if options.gradient_clip_algorithm == "value" and not options.gradient_clip_val:
        warn(
            "LD174",
            f"gradient_clip_algorithm='value' is ignored, because gradient_clip_val={options.gradient_clip_val} "
            "does not clip. Give gradient_clip_val a number.",
        )
    if options.max_time is not None and isinstance(options.callbacks, list):
        for callback in options.callbacks:
            if isinstance(callback, Timer):
                warn(
                    "LD175",
                    f"max_time={options.max_time!r} is ignored, because the Timer in callbacks takes its place.",
                )
