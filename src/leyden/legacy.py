"""Keywords and attributes of the Trainer that Lightning 1.x had, in today's words."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from leyden.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from leyden.callbacks.model_summary import ModelSummary
from leyden.core.callback import Callback
from leyden.option_checks import STRATEGIES_OF_OLD, not_a
from leyden.options import TrainerOptions
from leyden.utils.arguments import add_arguments, chosen, warn_of_former
from leyden.utils.errors import MisconfigurationError, NotBuiltError, nearest, warn


@dataclass(frozen=True)
class Today:
    """What an old keyword means today; nothing at all where it asks for what is done anyway.

    Attributes:
        options: Arguments of the Trainer.
        fit: Arguments of ``trainer.fit``.
        note: What to do about the keyword, where that is not to write ``options`` and ``fit`` instead.
    """

    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    note: str = ""


_DEFAULTS = {option.name: option.default for option in fields(TrainerOptions)}
_FIT_ARGUMENTS = ("model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path")


def accept(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort out what ``Trainer(...)`` was called with.

    An argument of today that is None or has its default value gives way to an old keyword that sets it; callbacks are
    put together.

    Returns:
        Arguments for ``TrainerOptions``, not checked yet, and arguments for ``trainer.fit``.

    Raises:
        TypeError: A keyword is unknown, or has no counterpart today.
        NotBuiltError: Leyden has no counterpart yet.
        MisconfigurationError: An old keyword contradicts another one, or an argument of today.
    """
    old = {name: value for name, value in given.items() if name not in _DEFAULTS}
    options = {name: value for name, value in given.items() if name in _DEFAULTS}
    translated, fit = translate(old)
    for name, value in translated.items():
        now = options.get(name)
        if name == "callbacks":
            options[name] = [*_as_list(now), *value]
        elif now is None or now in (_DEFAULTS[name], value):
            options[name] = value
        elif name != "accelerator" or now not in STRATEGIES_OF_OLD:  # TrainerOptions says what to do about that one
            spelling = next(f"{key}={old[key]!r}" for key in old if name in _meaning(key, old[key]).options)
            raise MisconfigurationError(
                f"Trainer({spelling}) means {name}={value!r}, but {name}={now!r} is given too. Leave the old one out."
            )
    if "weights_save_path" in old and sum(isinstance(c, Checkpoint) for c in _as_list(options.get("callbacks"))) > 1:
        raise MisconfigurationError(
            f"Trainer(weights_save_path={old['weights_save_path']!r}) and a checkpoint callback are both given. "
            "Leave weights_save_path out and give the callback dirpath=."
        )
    return options, fit


def translate(unknown: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Say in today's words what keywords of 1.x say, with one warning for each.

    Args:
        unknown: What the Trainer was given and ``TrainerOptions`` has not.

    Returns:
        Arguments for ``TrainerOptions``, and arguments for ``trainer.fit``.

    Raises:
        TypeError: A keyword is unknown, or has no counterpart today; the message says what to use.
        NotBuiltError: Leyden has no counterpart yet; the message says what to use.
        MisconfigurationError: Two keywords contradict each other.
    """
    if strangers := [name for name in unknown if name not in _OLD]:
        raise TypeError(" ".join(map(_unknown, strangers)))
    options: dict[str, Any] = {}
    fit: dict[str, Any] = {}
    for name, value in unknown.items():
        today = _meaning(name, value)
        for key, meant in today.options.items():
            if key == "callbacks":
                meant = [*options.get(key, []), *meant]
            elif options.get(key, meant) != meant:
                raise MisconfigurationError(
                    f"Trainer({name}={value!r}) means {key}={meant!r}, but another old keyword means "
                    f"{key}={options[key]!r}. Leave one of them out."
                )
            options[key] = meant
        fit.update(today.fit)
        warn("LD170", f"Trainer({name}={value!r}) {_verdict(today)}", subject=name)
    return options, fit


def _unknown(name: str) -> str:
    if name in _FIT_ARGUMENTS:
        return f"Trainer({name}=...) is unknown: it is an argument of trainer.fit."
    return f"Trainer({name}=...) is unknown.{nearest(name, _DEFAULTS)}"


def _verdict(today: Today) -> str:
    if today.note:
        return today.note
    calls = [
        f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
        for function, arguments in (("Trainer", today.options), ("trainer.fit", today.fit))
        if arguments
    ]
    return f"is the old spelling of {' and '.join(calls)}." if calls else "asks for what is done anyway: leave it out."


def _as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


# What has another name and the same values; None leaves it at its default.
_RENAMED = {
    "max_nb_epochs": "max_epochs",
    "min_nb_epochs": "min_epochs",
    "nb_gpu_nodes": "num_nodes",
    "nb_sanity_val_steps": "num_sanity_val_steps",
    "gradient_clip": "gradient_clip_val",
    "replace_sampler_ddp": "use_distributed_sampler",
    "default_save_path": "default_root_dir",
    "show_progress_bar": "enable_progress_bar",
    "row_log_interval": "log_every_n_steps",
}

# Fractions, where 0.x took 1 for 1.0.
_FRACTIONS = {
    "train_percent_check": "limit_train_batches",
    "val_percent_check": "limit_val_batches",
    "test_percent_check": "limit_test_batches",
    "overfit_pct": "overfit_batches",
}

# What a true value turns on.
_SWITCHES: dict[str, dict[str, Any]] = {
    "use_amp": {"precision": 16},
    "terminate_on_nan": {"on_nonfinite_loss": "stop"},
    "print_nan_grads": {"detect_anomaly": True},
    "reload_dataloaders_every_epoch": {"reload_dataloaders_every_n_epochs": 1},
}

_FLUSHING = "Give the number to the logger: CSVLogger('logs', flush_logs_every_n_steps=100)."
_NO_SUCH_DEVICE = "Use accelerator='cuda', 'mps' or 'cpu'."

# What has no counterpart: the values that ask for what is done anyway, and what to do instead.
_GONE: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_select_gpus": ((None, False), "Choose one by devices=[0], or by CUDA_VISIBLE_DEVICES."),
    "amp_backend": ((None, "native"), "Use precision='16-mixed', which is torch's own."),
    "truncated_bptt_steps": (
        (None, 0),
        "Set automatic_optimization = False in the module and split the batch in training_step.",
    ),
    "process_position": ((None, 0), "The bar is always the first one: leave it out."),
    "log_save_interval": ((None, 100), _FLUSHING),
    "flush_logs_every_n_steps": ((None, 100), _FLUSHING),
    "track_grad_norm": ((None, -1), "Log torch.nn.utils.get_total_norm(...) in on_before_optimizer_step."),
    "multiple_trainloader_mode": (
        (None, "max_size_cycle"),
        "Give the loaders as leyden.CombinedLoader(loaders, mode).",
    ),
    "move_metrics_to_cpu": ((None, False), "Return tensor.cpu() from the steps where they return much."),
}

# What has a counterpart that is not built yet: the same.
_NOT_BUILT: dict[str, tuple[tuple[Any, ...], str]] = {
    "tpu_cores": ((None, 0), _NO_SUCH_DEVICE),
    "ipus": ((None, 0), _NO_SUCH_DEVICE),
    "hpus": ((None, 0), _NO_SUCH_DEVICE),
    # Never an argument of Lightning's, though courses list it.
    "min_time": ((None,), "Use min_epochs or min_steps."),
    "log_gpu_memory": ((None, False), "Log torch.cuda.memory_allocated() in a hook."),
    "stochastic_weight_avg": ((None, False), "Use torch.optim.swa_utils in hooks."),
    "auto_lr_find": ((None, False), "Give the optimizer its learning rate."),
    "auto_scale_batch_size": ((None, False), "Give the DataLoader its batch_size."),
}


def _callback(callback: Callback, spelling: str) -> Today:
    return Today({"callbacks": [callback]}, note=f"is the old spelling of Trainer(callbacks=[{spelling}]).")


def _gpus(value: Any) -> Today:
    if value is None:
        return Today()
    if value in (0, [], "") and not isinstance(value, bool):
        return Today({"accelerator": "cpu"})
    return Today({"accelerator": "gpu", "devices": value})


def _num_processes(value: Any) -> Today:
    return Today() if value in (None, 1) else Today({"accelerator": "cpu", "devices": value})


def _distributed_backend(value: Any) -> Today:
    if value is None:
        return Today()
    if value == "ddp_cpu":
        return Today({"accelerator": "cpu", "strategy": "ddp"})
    if STRATEGIES_OF_OLD.get(value) != value:
        raise TypeError(
            f"Trainer(distributed_backend={value!r}) has no counterpart today. "
            f"Use strategy={STRATEGIES_OF_OLD.get(value, 'auto')!r}."
        )
    return Today({"strategy": value})


def _checkpoint_callback(value: Any) -> Today:
    if value is None or isinstance(value, bool):
        return Today({"enable_checkpointing": bool(value)})
    if isinstance(value, Callback):
        return _callback(value, f"{type(value).__name__}(...)")
    raise not_a(Checkpoint, "checkpoint_callback", value, "Use callbacks=[ModelCheckpoint(...)].")


def _early_stop_callback(value: Any) -> Today:
    if value is None or value is False:
        return Today()
    if isinstance(value, Callback):
        return _callback(value, f"{type(value).__name__}(...)")
    raise TypeError(
        f"Trainer(early_stop_callback={value!r}) does not say what to monitor. "
        "Use callbacks=[EarlyStopping(monitor='val_loss')]."
    )


def _progress_bar_refresh_rate(value: Any) -> Today:
    if value is None:
        return Today()
    if not value:
        return Today({"enable_progress_bar": False})
    return Today(
        note="counts batches, but today's bar is redrawn by the clock: leave it out, or give "
        "callbacks=[ProgressBar(refresh_every=0.1)], in seconds."
    )


def _weights_summary(value: Any) -> Today:
    if value is None:
        return Today({"enable_model_summary": False})
    if value not in ("top", "full"):
        raise TypeError(f"Trainer(weights_summary={value!r}) is unknown. Use callbacks=[ModelSummary(max_depth=1)].")
    return Today() if value == "top" else _callback(ModelSummary(max_depth=-1), "ModelSummary(max_depth=-1)")


def _weights_save_path(value: Any) -> Today:
    if value is None:
        return Today()
    return _callback(ModelCheckpoint(dirpath=value), f"ModelCheckpoint(dirpath={value!r})")


def _resume_from_checkpoint(value: Any) -> Today:
    return Today() if value is None else Today(fit={"ckpt_path": value})


def _amp_level(value: Any) -> Today:
    return Today(note="was for Apex, and does nothing to the mixed precision of torch: leave it out.")


def _prepare_data_per_node(value: Any) -> Today:
    return Today(
        note="makes no difference on one node. For several, set prepare_data_per_node on the DataModule or the module."
    )


# What takes more than a line to say.
_CHANGED: dict[str, Callable[[Any], Today]] = {
    "gpus": _gpus,
    "num_processes": _num_processes,
    "distributed_backend": _distributed_backend,
    "amp_level": _amp_level,
    "prepare_data_per_node": _prepare_data_per_node,
    "resume_from_checkpoint": _resume_from_checkpoint,
    "checkpoint_callback": _checkpoint_callback,
    "weights_save_path": _weights_save_path,
    "early_stop_callback": _early_stop_callback,
    "progress_bar_refresh_rate": _progress_bar_refresh_rate,
    "weights_summary": _weights_summary,
}

_OLD = {*_RENAMED, *_FRACTIONS, *_SWITCHES, *_GONE, *_NOT_BUILT, *_CHANGED}


def _meaning(name: str, value: Any) -> Today:
    """What ``Trainer(name=value)`` means today."""
    if name in _RENAMED:
        return Today() if value is None else Today({_RENAMED[name]: value})
    if name in _FRACTIONS:
        return Today({_FRACTIONS[name]: float(value) if type(value) is int else value})
    if name in _SWITCHES:
        return Today(_SWITCHES[name] if value else {})
    if name in _CHANGED:
        return _CHANGED[name](value)
    harmless, instead = (_GONE | _NOT_BUILT)[name]
    if any(value is each or (value == each and not isinstance(value, bool)) for each in harmless):
        return Today()
    if name in _NOT_BUILT:
        raise NotBuiltError(f"Trainer({name}={value!r})", instead)
    raise TypeError(f"Trainer({name}={value!r}) has no counterpart today. {instead}")


# What else trainer.fit and its like took.

_LOADERS = {
    "fit": {"train_dataloader": "train_dataloaders"},
    "validate": {"val_dataloaders": "dataloaders"},
    "test": {"test_dataloaders": "dataloaders"},
    "predict": {},
}
_EVALUATION_ARGUMENTS = ("model", "dataloaders", "ckpt_path", "datamodule", "weights_only")
METHOD_ARGUMENTS = {
    "fit": (*_FIT_ARGUMENTS, "weights_only"),
    "validate": (*_EVALUATION_ARGUMENTS, "verbose"),
    "test": (*_EVALUATION_ARGUMENTS, "verbose"),
    "predict": (*_EVALUATION_ARGUMENTS, "return_predictions"),
}


def loaders_of(method: str, loaders: Any, former: Mapping[str, Any]) -> Any:
    """The loaders that ``trainer.fit`` or its like was given: ``loaders``, or those under the keyword of 1.x.

    Raises:
        TypeError: ``former`` has a keyword that 1.x had not either.
        MisconfigurationError: Both are given.
    """
    for name, given in former.items():
        today = _LOADERS[method].get(name)
        if today is None:
            raise TypeError(f"trainer.{method}({name}=...) is unknown.{nearest(name, METHOD_ARGUMENTS[method])}")
        if loaders is not None:
            raise MisconfigurationError(
                f"trainer.{method}({name}=...) means {today}, which is given too. Leave {name} out."
            )
        warn("LD250", f"trainer.{method}({name}=...) is the old spelling of trainer.{method}({today}=...).")
        loaders = given
    return loaders


# Attributes.


def _dicts_of_schedulers(trainer: Any) -> list[dict[str, Any]]:
    return [
        {each.name: getattr(config, each.name) for each in fields(config)} for config in trainer.lr_scheduler_configs
    ]


def _number_of_gpus(trainer: Any) -> int:
    return int(trainer.num_devices) if trainer.strategy.device.type == "cuda" else 0


# What each was, made of what there is today, and today's spelling; None for what is gone, and what to do instead.
ATTRIBUTES: dict[str, tuple[Callable[[Any], Any] | None, str]] = {
    "lr_schedulers": (_dicts_of_schedulers, "lr_scheduler_configs, whose items have attributes, not keys"),
    "progress_bar_dict": (lambda trainer: trainer.progress_bar_metrics, "progress_bar_metrics"),
    "num_gpus": (_number_of_gpus, "num_devices"),
    "gpus": (_number_of_gpus, "num_devices"),
    "data_parallel_device_ids": (lambda trainer: trainer.device_ids, "device_ids"),
    "root_gpu": (lambda trainer: trainer.strategy.device.index, "strategy.device"),
    "validated_ckpt_path": (lambda trainer: trainer.ckpt_path, "ckpt_path"),
    "tested_ckpt_path": (lambda trainer: trainer.ckpt_path, "ckpt_path"),
    "predicted_ckpt_path": (lambda trainer: trainer.ckpt_path, "ckpt_path"),
    "resume_from_checkpoint": (lambda trainer: trainer.ckpt_path, "ckpt_path"),
    "training_type_plugin": (lambda trainer: trainer.strategy, "strategy"),
    "train_loop": (lambda trainer: trainer.fit_loop, "fit_loop"),
    "evaluation_loop": (lambda trainer: trainer.validate_loop, "validate_loop"),
    "batch_idx": (lambda trainer: trainer.fit_loop.batch_idx, "fit_loop.batch_idx"),
    "total_batch_idx": (lambda trainer: trainer.fit_loop.total_batch_idx, "fit_loop.total_batch_idx"),
    "get_model": (lambda trainer: lambda: trainer.lightning_module, "lightning_module"),
    "proc_rank": (lambda trainer: trainer.global_rank, "global_rank"),
    "running_sanity_check": (lambda trainer: trainer.sanity_checking, "sanity_checking"),
    "disable_validation": (lambda trainer: not trainer.enable_validation, "enable_validation, which is the opposite"),
    "weights_save_path": (None, "Read trainer.checkpoint_callback.dirpath."),
    "tpu_cores": (None, _NO_SUCH_DEVICE),
    "ipus": (None, _NO_SUCH_DEVICE),
    "optimizer_frequencies": (
        None,
        "How often each has its turn stands in what configure_optimizers returns: "
        "{'generator': {'optimizer': optimizer, 'every': 5}, ...}.",
    ),
    **{
        f"reset_{kind}_dataloader": (None, "Trainer(reload_dataloaders_every_n_epochs=1) asks for the loaders again.")
        for kind in ("train", "val", "train_val")
    },
    **{
        f"reset_{kind}_dataloader": (None, f"trainer.{kind}() asks for the loader each time.")
        for kind in ("test", "predict")
    },
    "tune": (None, "Give the optimizer its learning rate and the DataLoader its batch_size."),
    "tuner": (None, "Give the optimizer its learning rate and the DataLoader its batch_size."),
}


def attribute(trainer: Any, name: str) -> Any:
    """What ``trainer.name`` was in 1.x, with a warning.

    Raises:
        AttributeError: There is nothing like it any more; the message says what to do instead.
    """
    make, today = ATTRIBUTES[name]
    if make is None:
        raise AttributeError(f"Trainer has no attribute {name!r} any more. {today}")
    found = make(trainer)
    warn("LD251", f"trainer.{name} is the old spelling of trainer.{today}.", subject=name)
    return found


# The command line.

_NOT_ON_COMMAND_LINES = ("callbacks", "plugins", "warnings")


def add_argparse_args(
    cls: type, parser: argparse.ArgumentParser, use_argument_group: bool = True
) -> argparse.ArgumentParser:
    """See ``Trainer.add_argparse_args``. The old keywords are read too, though ``--help`` does not list them."""
    warn_of_former(cls)
    defaults = {name: default for name, default in _DEFAULTS.items() if name not in _NOT_ON_COMMAND_LINES}
    add_arguments(parser, defaults, title=cls.__name__ if use_argument_group else "")
    return add_arguments(parser, dict.fromkeys(sorted(_OLD)), shown=False)


def from_argparse_args(cls: type, args: Any, arguments: Mapping[str, Any]) -> Any:
    """See ``Trainer.from_argparse_args``."""
    warn_of_former(cls)
    found = chosen(args, (*_DEFAULTS, *_OLD), arguments)
    return cls(**{name: value for name, value in found.items() if name not in _OLD or value is not None})
