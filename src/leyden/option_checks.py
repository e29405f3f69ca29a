"""What each argument of the Trainer accepts: one pure function for each kind of value, and the table of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from leyden.core.callback import Callback
from leyden.core.hooks import overrides
from leyden.fabric.accelerators import Accelerator
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import CLIP_ALGORITHMS, Precision
from leyden.fabric.resolve import canonical_precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.logger import Logger
from leyden.utils.durations import parse_duration
from leyden.utils.errors import WARNING_ACTIONS, MisconfigurationError, NotBuiltError, nearest, warn
from leyden.utils.lazy import LazyModule

# Takes the argument's name and the value given, returns the value to keep.
Check: TypeAlias = Callable[[str, Any], Any]

_profilers = LazyModule("leyden.profilers.profiler")
PROFILERS = {
    "simple": (LazyModule("leyden.profilers.simple"), "SimpleProfiler"),
    "advanced": (LazyModule("leyden.profilers.advanced"), "AdvancedProfiler"),
    "pytorch": (LazyModule("leyden.profilers.torch"), "PyTorchProfiler"),
}
# What people pass as strings; only for the hint at the nearest name.
_CALLBACK_NAMES = ("ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "ProgressBar", "Timer")
_LOGGER_NAMES = ("TensorBoardLogger", "CSVLogger")
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
# What 1.x took as accelerator= or distributed_backend=, and the strategy= that does its work today.
STRATEGIES_OF_OLD = {
    "ddp": "ddp",
    "ddp_spawn": "ddp_spawn",
    "ddp_cpu": "ddp",
    "ddp2": "ddp",
    "dp": "ddp",
    "horovod": "ddp",
    "ddp_sharded": "fsdp",
    "ddp_sharded_spawn": "fsdp",
    "fairscale": "fsdp",
    "colossalai": "fsdp",
    "bagua": "ddp",
    "deepspeed": "deepspeed",
}
# Values of 1.x that stand for a value of today.
_VALUES_OF_OLD: dict[str, tuple[Any, Any]] = {
    "accelerator": (None, "auto"),
    "strategy": (None, "auto"),
    "devices": (None, "auto"),
    "max_steps": (None, -1),
    "profiler": (False, None),
}


def check_argument(name: str, value: Any) -> Any:
    """Check one argument of the Trainer by itself.

    Returns:
        The value to keep: NumPy's scalars as Python's, collections as new lists, spellings of 1.x as today's.

    Raises:
        TypeError: The value is of a wrong type.
        MisconfigurationError: It is of the right type, but out of range or unknown.
        NotBuiltError: Lightning has what it asks for, Leyden has not yet.
    """
    value = _plain(value)
    if name in _VALUES_OF_OLD and value is _VALUES_OF_OLD[name][0]:
        today = _VALUES_OF_OLD[name][1]
        warn("LD171", f"Trainer({name}={value!r}) is the old spelling of Trainer({name}={today!r}).", subject=name)
        return today
    return CHECKS[name](name, value)


def _plain(value: Any) -> Any:
    """NumPy's numbers and truth values as Python's own; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    return value


# Numbers and truth values.


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    raise TypeError(f"{name}={value!r} is not a truth value. Give True or False.")


def optional(check: Check) -> Check:
    """What ``check`` accepts, or None."""

    def check_unless_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return check_unless_none


def whole(at_least: int, advice: str) -> Check:
    """A whole number from ``at_least`` up. Floats that are whole, such as 1e6, become ints."""

    def check(name: str, value: Any) -> int:
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not is_whole or isinstance(value, bool):
            raise TypeError(f"{name}={value!r} is not a whole number. {advice}")
        if value < at_least:
            raise MisconfigurationError(f"{name}={value!r} is less than {at_least}. {advice}")
        return int(value)

    return check


def amount(name: str, value: Any) -> int | float:
    """How much of the data: a float is a fraction of it, an int a number of batches."""
    advice = "A float from 0.0 to 1.0 is a fraction of the batches (1.0 is all), an int is their number (1 is one)."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is neither a fraction nor a number of batches. {advice}")
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise MisconfigurationError(f"{name}={value!r} is a fraction outside 0.0 to 1.0. {advice}")
    if value < 0:
        raise MisconfigurationError(f"{name}={value!r} is negative. {advice}")
    return value


def interval(name: str, value: Any) -> Any:
    """How often to validate: a float is a fraction of an epoch, an int a number of batches, the rest is a time."""
    advice = (
        "A float up to 1.0 is a fraction of an epoch (0.25 is four times an epoch), an int a number of batches, "
        "'DD:HH:MM:SS' or a timedelta a time."
    )
    if isinstance(value, str | timedelta | Mapping):
        if not parse_duration(value, name):
            raise MisconfigurationError(f"{name}={value!r} is no interval. {advice}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is neither a fraction of an epoch, a number of batches nor a time. {advice}")
    if value == 0:
        raise MisconfigurationError(f"{name}={value!r} is no interval. {advice} limit_val_batches=0 never validates.")
    if isinstance(value, float) and not 0.0 < value <= 1.0:
        raise MisconfigurationError(f"{name}={value!r} is a fraction outside 0.0 to 1.0. {advice}")
    if value < 0:
        raise MisconfigurationError(f"{name}={value!r} is negative. {advice}")
    return value


def trial_batches(name: str, value: Any) -> bool | int:
    """``fast_dev_run``: a truth value or a number of batches."""
    return (
        value
        if isinstance(value, bool)
        else whole(0, "True tries 1 batch of each kind, a number n that many.")(name, value)
    )


def batches_per_step(name: str, value: Any) -> int:
    """``accumulate_grad_batches``: a number from 1 up; a schedule of them is not built."""
    if isinstance(value, Mapping):
        raise NotBuiltError(f"Trainer({name}={value!r}), a schedule,", "Give one number, which holds for all epochs.")
    return int(
        whole(1, "Give the number of batches whose gradients one optimizer step uses; 1 is the default.")(name, value)
    )


def bound(name: str, value: Any) -> int | float:
    """``gradient_clip_val``: a number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is not a number. Give the largest norm or value, or None not to clip.")
    if not value >= 0:  # NaN too
        raise MisconfigurationError(f"{name}={value!r} is not 0 or more. Give None or 0 not to clip.")
    return value


def seconds(name: str, value: Any) -> float:
    """``preempt_grace``: a number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is not a number. Give seconds.")
    if not 0 <= value < math.inf:  # NaN too
        raise MisconfigurationError(f"{name}={value!r} is not a number of seconds from 0 up.")
    return float(value)


# Names.


def one_of(*names: str) -> Check:
    """One of ``names``."""
    choices = ", ".join(map(repr, names))

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name}={value!r} is not a name. Choose one of: {choices}.")
        if value not in names:
            raise MisconfigurationError(
                f"{name}={value!r} is unknown. Choose one of: {choices}.{nearest(value, names)}"
            )
        return value

    return check


def compilation(name: str, value: Any) -> str | None:
    """What to compile; False is None."""
    if value is False:
        return None
    if value is True:
        raise TypeError(f"{name}=True does not say what to compile. {_TO_COMPILE}")
    mode: str = one_of("model", "step", "auto")(name, value)
    return mode


_TO_COMPILE = (
    "Choose 'model' (forward and loss), 'step' (the optimizer's part too) or 'auto' (whichever of them or the step as "
    "it is turns out to be fastest)."
)


def flag_or_warn(name: str, value: Any) -> bool | str:
    """``deterministic``: True, False or ``"warn"``."""
    if isinstance(value, bool):
        return value
    if value == "warn":
        return "warn"
    kind = MisconfigurationError if isinstance(value, str) else TypeError
    raise kind(f"{name}={value!r} is unknown. Choose one of: True, False, 'warn'.{nearest(value, ['warn'])}")


def precision(name: str, value: Any) -> str:
    """The full name of a precision."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{name}={value!r} is not a precision. Give a name, such as 'bf16-mixed', or 16, 32 or 64.")
    return canonical_precision(value)


def duration(name: str, value: Any) -> Any:
    """A time, in any form that ``parse_duration`` reads; kept as given."""
    if not isinstance(value, str | timedelta | Mapping):
        raise TypeError(f"{name}={value!r} is not a time. Give 'DD:HH:MM:SS', a timedelta, or a dict {{'hours': 8}}.")
    parse_duration(value, name)
    return value


def path(name: str, value: Any) -> str:
    """A folder, as a string."""
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{name}={value!r} is not a path. Give a string or a pathlib.Path.")


def warning_actions(name: str, value: Any) -> dict[str, str]:
    """What to do about each warning, by its id."""
    advice = "Give ids and actions, such as {'LD031': 'ignore'}."
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r} is not a dict. {advice}")
    for identity, action in value.items():
        if not isinstance(identity, str) or not re.fullmatch(r"LD\d{3}", identity):
            raise MisconfigurationError(
                f"{name}={value!r}: {identity!r} is not the id of a warning, which is LD and three digits and ends its "
                f"message; docs/warnings.md lists them. {advice}"
            )
        if action not in WARNING_ACTIONS:
            raise MisconfigurationError(
                f"{name}={value!r}: the action {action!r} of {identity} is unknown. Choose one of: "
                f"{', '.join(map(repr, WARNING_ACTIONS))}.{nearest(action, WARNING_ACTIONS)}"
            )
    return dict(value)


# Objects.


def accelerator(name: str, value: Any) -> str | Accelerator:
    """A name or an object; which names there are is known to fabric/resolve.py."""
    if isinstance(value, str) and value in STRATEGIES_OF_OLD:
        raise MisconfigurationError(
            f"{name}={value!r} names a strategy, not a kind of device. "
            f"Give strategy={STRATEGIES_OF_OLD[value]!r} instead; on one device leave it out."
        )
    if isinstance(value, str | Accelerator):
        return value
    raise not_a(Accelerator, name, value, "Give 'auto', 'cpu', 'gpu', 'cuda' or 'mps'.")


def strategy(name: str, value: Any) -> str | Strategy:
    """A name or an object; which names there are is known to fabric/resolve.py."""
    if isinstance(value, str) and STRATEGIES_OF_OLD.get(value, value) != value:
        raise MisconfigurationError(
            f"{name}={value!r} is gone since Lightning 2. Give strategy={STRATEGIES_OF_OLD[value]!r} instead; on one "
            "device leave it out."
        )
    if isinstance(value, str | Strategy):
        return value
    raise not_a(Strategy, name, value, "Give 'auto' or the name of a strategy.")


def devices(name: str, value: Any) -> int | str | list[int]:
    """A number or indices; which devices there are is known to fabric/resolve.py."""
    advice = "Give a number, a list of indices such as [0, 1], or 'auto'."
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not a number of devices. {advice}")
    if isinstance(value, str | int):
        return value
    if not isinstance(value, list | tuple | range):
        raise TypeError(f"{name}={value!r} is neither a number nor a list of indices. {advice}")
    indices = [_plain(index) for index in value]
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"{name}={value!r} holds {index!r}, which is not the index of a device. {advice}")
    return indices


def loggers(name: str, value: Any) -> bool | Logger | list[Logger]:
    """True, False, a Logger, or several in a list."""
    if isinstance(value, bool | Logger):
        return value
    advice = "Give a logger, such as CSVLogger('logs'), a list of them, True or False."
    if isinstance(value, str | Mapping | type) or not isinstance(value, Iterable):
        raise not_a(Logger, name, value, advice + _name_hint(value, _LOGGER_NAMES))
    given = list(value)
    for logger in given:
        if not isinstance(logger, Logger):
            raise not_a(Logger, name, logger, advice + _name_hint(logger, _LOGGER_NAMES), within=given)
    _check_no_twin(name, given)
    return given


def callbacks(name: str, value: Any) -> list[Callback]:
    """A Callback, or several in a list."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    for callback in given:
        if not isinstance(callback, Callback):
            advice = "Give objects, such as callbacks=[EarlyStopping(monitor='val_loss')]."
            raise not_a(Callback, name, callback, advice + _name_hint(callback, _CALLBACK_NAMES), within=value)
    _check_no_twin(name, given)
    _check_states_apart(name, given)
    return given


def profiler(name: str, value: Any) -> Any:
    """The name of a profiler or an object."""
    choices = f"Choose one of: {', '.join(map(repr, PROFILERS))}, or give an object such as SimpleProfiler()."
    if isinstance(value, str):
        if value == "xla":
            raise NotBuiltError(f"Trainer({name}='xla')", f"TPUs are not supported. {choices}")
        if value not in PROFILERS:
            raise MisconfigurationError(f"{name}={value!r} is unknown. {choices}{nearest(value, PROFILERS)}")
        return value
    if isinstance(value, _profilers.Profiler):
        return value
    raise not_a("Profiler", name, value, choices)


def make_profiler(value: Any) -> Any:
    """The profiler that ``Trainer(profiler=value)`` means, for a ``value`` that is checked."""
    if value is None:
        return _profilers.Profiler()
    if isinstance(value, str):
        module, name = PROFILERS[value]
        return getattr(module, name)()
    return value


def plugins(name: str, value: Any) -> list[Precision | CheckpointIO]:
    """A Precision, a CheckpointIO, or one of each in a list."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    advice = "Give a Precision or a CheckpointIO, or a list with one of each."
    for plugin in given:
        if isinstance(plugin, Precision | CheckpointIO):
            continue
        if isinstance(plugin, str | type | int | float | Mapping) or plugin is None:
            raise not_a("Precision or CheckpointIO", name, plugin, advice, within=value)
        raise NotBuiltError(f"Trainer({name}=...) with a {type(plugin).__name__}", advice)
    for kind in (Precision, CheckpointIO):
        if len(twins := [plugin for plugin in given if isinstance(plugin, kind)]) > 1:
            raise MisconfigurationError(f"{name}={given!r} holds {len(twins)} of {kind.__name__}. {advice}")
    return given


def not_a(kind: type | str, name: str, value: Any, advice: str, within: Any = None) -> TypeError:
    """The error for a ``value`` that should be an object of class ``kind``.

    Args:
        kind: The class, or its name.
        name: The argument.
        value: What is wrong.
        advice: What works.
        within: The collection that holds ``value``, where the argument is one.
    """
    subject = f"{name}={value!r}" if within is None or within is value else f"{name}={within!r} holds {value!r}, which"
    if isinstance(value, type):
        return TypeError(f"{subject} is a class, not an object. Call it: {value.__name__}(...).")
    if (package := type(value).__module__.partition(".")[0]) in _LIGHTNING:
        theirs = type(value).__name__
        return TypeError(f"{subject} is a {theirs} of the package {package}. Import {theirs} from leyden instead.")
    expected = kind if isinstance(kind, str) else kind.__name__
    return TypeError(f"{subject} is not a {expected}. {advice}")


def _name_hint(value: Any, names: Sequence[str]) -> str:
    """A hint at the class of ``names`` that a string means."""
    return nearest(value.replace("_", ""), names) if isinstance(value, str) else ""


def _check_no_twin(name: str, given: Sequence[object]) -> None:
    """Refuse the same object twice: everything would happen to it twice."""
    for index, item in enumerate(given):
        if any(item is other for other in given[:index]):
            raise MisconfigurationError(f"{name}={given!r} holds the same {type(item).__name__} twice. Give it once.")


def _check_states_apart(name: str, given: Sequence[Callback]) -> None:
    """Refuse callbacks whose states would overwrite each other in checkpoints."""
    seen: dict[str, Callback] = {}
    for callback in given:
        if not overrides(callback, "state_dict", Callback):
            continue
        key = callback.state_key
        if key in seen:
            raise MisconfigurationError(
                f"{name}={given!r} holds two callbacks with the state_key {key!r}, so one's state would overwrite the "
                f"other's in checkpoints. Leave one out, or override state_key in {type(callback).__name__}."
            )
        seen[key] = callback


# What Lightning has and Leyden has not yet.


def not_built(check: Check, default: Any, instead: str) -> Check:
    """What ``check`` accepts, if it is ``default``; the rest is not built."""

    def check_is_default(name: str, value: Any) -> Any:
        if (value := check(name, value)) != default:
            raise NotBuiltError(f"Trainer({name}={value!r})", instead)
        return value

    return check_is_default


def _anything(name: str, value: Any) -> Any:
    return value


CHECKS: dict[str, Check] = {
    "accelerator": accelerator,
    "strategy": strategy,
    "devices": devices,
    "num_nodes": not_built(whole(1, "Give the number of machines."), 1, "Train on one machine: num_nodes=1."),
    "precision": optional(precision),
    "logger": optional(loggers),
    "callbacks": optional(callbacks),
    "fast_dev_run": trial_batches,
    "max_epochs": optional(whole(-1, "Give the number of epochs, or -1 for no limit.")),
    "min_epochs": optional(whole(0, "Give the number of epochs, or None for no minimum.")),
    "max_steps": whole(-1, "Give the number of optimizer steps, or -1 for no limit."),
    "min_steps": optional(whole(0, "Give the number of optimizer steps, or None for no minimum.")),
    "max_time": optional(duration),
    "limit_train_batches": optional(amount),
    "limit_val_batches": optional(amount),
    "limit_test_batches": optional(amount),
    "limit_predict_batches": optional(amount),
    "overfit_batches": amount,
    "val_check_interval": optional(interval),
    "check_val_every_n_epoch": optional(
        whole(1, "Give a number of epochs, or None to count batches alone; limit_val_batches=0 never validates.")
    ),
    "num_sanity_val_steps": optional(whole(-1, "Give a number of batches for each loader: 0 for none, -1 for all.")),
    "log_every_n_steps": optional(whole(0, "Give a number of batches, or 0 never to log step values.")),
    "enable_checkpointing": optional(flag),
    "enable_progress_bar": optional(flag),
    "enable_model_summary": optional(flag),
    "accumulate_grad_batches": batches_per_step,
    "gradient_clip_val": optional(bound),
    "gradient_clip_algorithm": optional(one_of(*CLIP_ALGORITHMS)),
    "deterministic": optional(flag_or_warn),
    "benchmark": optional(flag),
    "inference_mode": flag,
    "use_distributed_sampler": flag,
    "profiler": optional(profiler),
    "detect_anomaly": flag,
    "barebones": flag,
    "plugins": optional(plugins),
    "sync_batchnorm": not_built(flag, False, "On one device there is nothing to synchronise: leave it out."),
    "reload_dataloaders_every_n_epochs": whole(0, "Give a number of epochs, or 0 to make the loaders once."),
    "default_root_dir": optional(path),
    "enable_autolog_hparams": flag,
    "model_registry": not_built(_anything, None, "Upload the files that ModelCheckpoint writes."),
    "suggest_integrations": flag,
    "on_nonfinite_loss": one_of("stop", "ignore"),
    "warnings": optional(warning_actions),
    "preempt_grace": seconds,
    "fast_paths": flag,
    "compile": optional(compilation),
}
