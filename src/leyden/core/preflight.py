"""What can be refused before training starts."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.core.former_hooks import FORMER_HOOKS, adapted, check_former_hooks
from leyden.core.hooks import HOOKS, overridden, overrides, parameters_of, takes
from leyden.core.module import LightningModule
from leyden.core.results import PLACES
from leyden.core.run import KIND, WORD, Run
from leyden.core.source import (
    called_names,
    forgets_return,
    log_calls,
    logged_names,
    mentions,
    parameter_names,
    readable,
    user_classes,
    uses_any,
)
from leyden.core.state import Fn, Stage
from leyden.utils.errors import MisconfigurationError, MissingMetricError, NotBuiltError, nearest, warn
from leyden.utils.lazy import LazyModule

_first_step = LazyModule("leyden.core.first_step")
_former_code = LazyModule("leyden.core.former_code")
_schedules = LazyModule("leyden.core.schedules")

# Hooks of Lightning 1.x, and what does their work today.
_FORMER_HOOKS = {
    **{
        f"{stage}_epoch_end": f"Append what {stage}_step returns to a list of your own, and use it in {hook}()."
        for stage, hook in (
            ("training", "on_train_epoch_end"),
            ("validation", "on_validation_epoch_end"),
            ("test", "on_test_epoch_end"),
        )
    },
    **{
        f"{stage}_step_end": f"Do that work at the end of {stage}_step." for stage in ("training", "validation", "test")
    },
    **{
        f"on_{event}": f"Define on_train_{event}(), and the same for validation and test where it is meant for them."
        for event in ("epoch_start", "epoch_end", "batch_start", "batch_end")
    },
    "on_pretrain_routine_start": "Define on_fit_start().",
    "on_pretrain_routine_end": "Define on_fit_start().",
    "on_init_start": "Define setup().",
    "on_init_end": "Define setup().",
    "on_keyboard_interrupt": "Define on_exception().",
    "on_hpc_save": "Define on_save_checkpoint().",
    "on_hpc_load": "Define on_load_checkpoint().",
    "configure_sharded_model": "Define configure_model().",
    "on_post_move_to_device": "Define on_fit_start().",
    "on_configure_sharded_model": "Define setup().",
    "on_before_accelerator_backend_setup": "Define setup().",
    **{f"on_{kind}_dataloader": f"Define {kind}_dataloader()." for kind in ("train", "val", "test", "predict")},
    **{f"on_reset_{kind}_dataloader": f"Define {kind}_dataloader()." for kind in ("train", "val", "test", "predict")},
    "tbptt_split_batch": "Set automatic_optimization = False and split the batch in training_step.",
}
_FORMER_STAGES = {
    Fn.FIT: ("training", "validation"),
    Fn.VALIDATE: ("validation",),
    Fn.TEST: ("test",),
    Fn.PREDICT: (),
}
_STAGE_OF = {Fn.FIT: Stage.TRAIN, Fn.VALIDATE: Stage.VALIDATE, Fn.TEST: Stage.TEST, Fn.PREDICT: Stage.PREDICT}
_HOOK_PREFIXES = (
    *("on_", "training_", "validation_", "test_", "predict_", "configure_", "train_", "val_", "prepare_"),
    *("optimizer_", "transfer_", "tbptt_", "set", "tear"),
)
# Words that one takes for each other in a hook's name.
_TAKEN_FOR = {
    "val": ("validation",),
    "validation": ("val",),
    "train": ("training",),
    "training": ("train",),
    "begin": ("start",),
    "finish": ("end",),
}
# What the framework calls besides HOOKS.
_CALLED = (
    *("setup", "teardown", "prepare_data", "on_exception", "configure_optimizers", "configure_model", "backward"),
    *("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step"),
    *("on_save_checkpoint", "on_load_checkpoint", "state_dict", "load_state_dict"),
)
_BY_KEYWORD = ("stage", "gradient_clip_val", "gradient_clip_algorithm")


def check_run(run: Run) -> None:
    """Refuse a run that cannot work.

    Raises:
        MisconfigurationError: Something is missing, misspelt or contradictory; the message says what and what to do.
        TypeError: A callback is none.
    """
    for callback in run.callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"{callback!r} among the callbacks is not a Callback. configure_callbacks() and trainer.callbacks "
                "hold objects such as EarlyStopping(monitor='val_loss')."
            )
    for owner, base in _owners(run):
        _check_spelling(owner, base, run)
        _check_calls(owner, base, run)
    check_former_hooks(run.module, _FORMER_STAGES[run.fn])
    _former_code.check_former_code(_owners(run))
    _check_step_and_loader(run)
    _warn_of_two_transfers(run)
    if run.fn is Fn.FIT:
        _check_training(run)
        _check_state_keys(run.callbacks)
        _check_places(run)
        for watcher, monitor in _monitors(run):
            _check_monitor(run, watcher, monitor)
        _warn_of_no_validation(run)


def check_optimization(run: Run) -> None:
    """Look at what ``configure_optimizers`` has returned: what it leaves out, and what would do nothing.

    Has the first step looked at too, when it comes.

    Raises:
        MisconfigurationError: A scheduler would wait for its metric in vain, or nothing would ever step.
    """
    module = run.module
    _first_step.warn_of_hidden_layers(module)
    if not run.optimizers:
        return
    _first_step.warn_of_untrained_parameters(run)
    if module.automatic_optimization:
        for config in run.schedulers:
            if config.reduce_on_plateau and config.monitor and config.strict:
                _check_monitor(run, type(config.scheduler).__name__, config.monitor)
        if (
            forgets_return(module, "training_step")
            and not {"manual_backward", "optimizers"} & called_names(user_classes(module))  # has its own message
            and not hasattr(module, "training_step_end")
        ):
            raise MisconfigurationError(
                f"{type(module).__name__}.training_step() has no return statement, so every batch would be skipped. "
                "Return the loss; or set self.automatic_optimization = False, and step in training_step."
            )
        _warn_of_accumulation(run)
    else:
        _check_steps_by_hand(run)
        _warn_of_unused_keys(run)
    _first_step.watch_first_step(run)


def _warn_of_accumulation(run: Run) -> None:
    every = run.options.accumulate_grad_batches
    if every == 1:
        return
    for method in ("optimizer_step", "optimizer_zero_grad"):
        if overrides(run.module, method, LightningModule):
            warn(
                "LD290",
                f"Trainer(accumulate_grad_batches={every}) and {type(run.module).__name__}.{method}(): it is called "
                f"once for every {every} batches, whose gradients are summed up for it. Let it not count batches by "
                "itself, nor clear gradients in between.",
                subject=method,
            )


def _check_steps_by_hand(run: Run) -> None:
    """Refuse manual optimization in which nobody calls an optimizer's ``step``, as far as source can tell."""
    module = run.module
    owners = (*module.modules(), *run.callbacks)
    helpers = (value for part in module.modules() for value in vars(part).values() if value is not run.trainer)
    for owner in itertools.chain(owners, helpers):
        if inspect.isroutine(owner) or uses_any(user_classes(owner), ("step", "optimizers")):
            return
    raise MisconfigurationError(
        f"{type(module).__name__} has automatic_optimization = False and calls no optimizer's step(), so nothing would "
        "be trained. In training_step: opt = self.optimizers(), opt.zero_grad(), self.manual_backward(loss), "
        "opt.step(). Or leave automatic_optimization as it is, and return the loss."
    )


def _warn_of_unused_keys(run: Run) -> None:
    """In manual optimization training_step steps the schedulers, whatever their dicts say about when."""
    for config in run.schedulers:
        keys = ("interval", "frequency", "monitor", "strict")
        told = [key for key in keys if getattr(config, key) != type(config).__dataclass_fields__[key].default]
        if told and not (told == ["monitor"] and config.reduce_on_plateau):
            kind = type(config.scheduler).__name__
            warn(
                "LD291",
                f"{', '.join(map(repr, told))} of {kind} do{'es' if len(told) == 1 else ''} nothing in manual "
                "optimization, where training_step steps the schedulers: self.lr_schedulers().step().",
                subject=kind,
            )


def check_schedules(run: Run) -> None:
    """Refuse schedulers that end before the run does, and warn of those whose total counts something else.

    Called when the training loader, the optimizers and a checkpoint's state are there.

    Raises:
        MisconfigurationError: A OneCycleLR would step beyond its end, which torch refuses when it gets there.
    """
    if run.schedulers and run.module.automatic_optimization:
        _schedules.check_schedules(run)


def _owners(run: Run) -> Iterator[tuple[Any, type]]:
    yield run.module, LightningModule
    if run.datamodule is not None:
        yield run.datamodule, LightningDataModule
    for callback in run.callbacks:
        yield callback, Callback


def _check_spelling(owner: Any, base: type, run: Run) -> None:
    """A method whose name is almost a hook's would never be called."""
    known = _known(base)
    for cls in user_classes(owner):
        for name, value in vars(cls).items():
            if not name.startswith(_HOOK_PREFIXES) or not inspect.isfunction(value) or name in known:
                continue
            if owner is run.module and name in FORMER_HOOKS:
                continue
            meant = name if name in _FORMER_HOOKS else _meant(name, base)
            # A method that the class itself calls is a helper, and one that makes loaders may be called by the script.
            if not meant or _is_called(name, owner) or _has_loader(run, meant):
                continue
            if name in _FORMER_HOOKS:
                raise NotBuiltError(f"{cls.__name__}.{name}(), a hook of Lightning 1.x,", _FORMER_HOOKS[name])
            raise MisconfigurationError(
                f"{cls.__name__}.{name}() is not a hook, so it would never be called. "
                f"{_FORMER_HOOKS.get(meant) or f'Did you mean {meant!r}?'} "
                "If it is a method of your own, give it a name less like a hook's."
            )


@functools.lru_cache
def _known(base: type) -> frozenset[str]:
    """The methods of ``base`` that may be hooks."""
    return frozenset(name for name in dir(base) if name.startswith(_HOOK_PREFIXES))


@functools.lru_cache(maxsize=1024)
def _meant(name: str, base: type) -> str:
    """The hook of ``base`` that ``name`` is a misspelling of; empty when it is none."""
    known = _known(base)
    more = [name.removeprefix(hook) for hook in known if name.startswith(hook)]
    if any(rest.startswith("_") or len(rest) > 2 for rest in more):
        return ""  # a helper such as training_step_of_discriminator, or prepare_dataset
    words = [(word, *_TAKEN_FOR.get(word, ())) for word in name.split("_")]
    for spelling in map("_".join, itertools.islice(itertools.product(*words), 64)):
        if spelling in known or (spelling.startswith("on_") and spelling in _FORMER_HOOKS):
            return spelling
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.88)), "")


def _is_called(name: str, owner: Any) -> bool:
    return name in called_names(user_classes(owner))


def _has_loader(run: Run, hook: str) -> bool:
    kind, _, rest = hook.partition("_")
    return rest == "dataloader" and run.sources[kind].exists


def _check_calls(owner: Any, base: type, run: Run) -> None:
    """A method that cannot take its call would end the run when that comes, perhaps after hours."""
    for name in overridden(owner, _called(base), base):
        original = vars(base)[name]
        if adapted(owner, name, run.trainer) is not None:
            continue
        arguments, by_keyword = _call_of(original)
        method = getattr(owner, name)
        if takes(method, len(arguments) - len(by_keyword), by_keyword):
            continue
        call = ", ".join(f"{a}={a}" if a in by_keyword else a for a in arguments)
        former = [each for each in parameter_names(method) if each in _FORMER_ARGUMENTS]
        hint = f" Lightning 1.x also passed {', '.join(former)}: leave that out." if former else ""
        raise MisconfigurationError(
            f"{type(owner).__name__}.{name}{parameters_of(method)} cannot take the call it will get: "
            f"{name}({call}).{hint}"
        )


@functools.lru_cache
def _called(base: type) -> tuple[str, ...]:
    """What of ``base`` the framework calls besides HOOKS."""
    return tuple(name for name in _CALLED if vars(base).get(name) is not None)


@functools.lru_cache
def _call_of(original: Any) -> tuple[list[str], list[str]]:
    """The arguments that a method of ours is called with, and those of them that are given by keyword."""
    parameters = list(inspect.signature(original).parameters.values())[1:]
    arguments = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return arguments, [argument for argument in arguments if argument in _BY_KEYWORD]


_FORMER_ARGUMENTS = ("optimizer_idx", "on_tpu", "using_native_amp", "using_lbfgs")


def _check_step_and_loader(run: Run) -> None:
    stage = _STAGE_OF[run.fn]
    module, step, source = run.module, f"{_step_word(stage)}_step", run.sources[KIND[stage]]
    name = type(module).__name__
    if stage is Stage.PREDICT:
        if not overrides(module, step, LightningModule) and type(module).forward is LightningModule.forward:
            raise MisconfigurationError(f"{name} has neither predict_step() nor forward(). Define one to predict.")
    elif not overrides(module, step, LightningModule) and not (stage is Stage.TRAIN and _steps_by_name(module)):
        raise MisconfigurationError(
            f"{name} has no {step}(). Define {step}(self, batch, batch_idx) to call trainer.{run.fn}()."
            f"{_nearest_method(module, step)}"
        )
    for word in ("training", "validation") if stage is Stage.TRAIN else (WORD[stage],):
        _refuse_iterator(module, f"{word}_step")
    if not source.exists:
        argument = "train_dataloaders" if run.fn is Fn.FIT else "dataloaders"
        raise MisconfigurationError(
            f"trainer.{run.fn}() has no data. Pass {argument}=, or a datamodule, or define {KIND[stage]}_dataloader() "
            f"in {name}.{_nearest_method(run.datamodule or module, f'{KIND[stage]}_dataloader')}"
        )


def _refuse_iterator(module: LightningModule, step: str) -> None:
    method = getattr(module, step, None)
    if method is not None and "dataloader_iter" in parameter_names(method):
        raise NotBuiltError(
            f"{type(module).__name__}.{step}{parameters_of(method)}, which asks for the iterator of the loader,",
            f"Take batches: {step}(self, batch, batch_idx).",
        )


def _nearest_method(owner: object, name: str) -> str:
    """A hint at a method of the user's that may be ``name``, misspelt."""
    own = [n for cls in user_classes(owner) for n, value in vars(cls).items() if inspect.isfunction(value)]
    return "".join(f" There is {n}(): is that meant?" for n in difflib.get_close_matches(name, own, n=1, cutoff=0.75))


def _step_word(stage: Stage) -> str:
    return "training" if stage is Stage.TRAIN else WORD[stage]


def _steps_by_name(module: LightningModule) -> bool:
    """True for a module with a training step for each of several optimizers, such as training_step_generator."""
    return sum(name.startswith("training_step_") for name in dir(type(module))) > 1


def _check_training(run: Run) -> None:
    module, options = run.module, run.options
    name = type(module).__name__
    if not overrides(module, "configure_optimizers", LightningModule):
        raise MisconfigurationError(
            f"{name} has no configure_optimizers(). Define it, for example: "
            f"return torch.optim.Adam(self.parameters(), lr=1e-3).{_nearest_method(module, 'configure_optimizers')}"
        )
    if forgets_return(module, "configure_optimizers"):
        raise MisconfigurationError(
            f"{name}.configure_optimizers() has no return statement, so nothing would be optimized. Return the "
            "optimizer; to optimize nothing on purpose, write return None."
        )
    for attribute in (*vars(type(module)), *vars(module)):
        if meant := _meant_setting(attribute):
            raise MisconfigurationError(
                f"{name}.{attribute} is not a setting, so it does nothing. Did you mean {meant!r}?"
            )
    step = module.training_step
    if not takes(step, 2) and not takes(step, 1):
        hint = (
            " Each optimizer has a step, as training_step_generator."
            if "optimizer_idx" in parameter_names(step)
            else ""
        )
        raise MisconfigurationError(
            f"{name}.training_step{parameters_of(step)} must take (batch) or (batch, batch_idx).{hint}"
        )
    every = options.reload_dataloaders_every_n_epochs
    if every and not (run.sources["train"].is_asked or run.sources["val"].is_asked):
        warn(
            "LD205",
            f"Trainer(reload_dataloaders_every_n_epochs={every}) does nothing, because the loaders were passed to fit, "
            f"which cannot be asked again. Define train_dataloader() in {name} or a datamodule.",
        )


def _warn_of_no_validation(run: Run) -> None:
    module, step, source = run.module, "validation_step", run.sources["val"]
    name = type(module).__name__
    has_step = overrides(module, step, LightningModule)
    if source.exists and not has_step and run.options.limit_val_batches != 0:
        if not source.is_asked:
            raise MisconfigurationError(
                f"{source.name} is given and {name} has no validation_step(), so validation would be left out. Define "
                f"validation_step(self, batch, batch_idx), or leave val_dataloaders out.{_nearest_method(module, step)}"
            )
        warn("LD050", f"{source.name} is given and {name} has no validation_step(), so validation is left out.")
    if has_step and not source.exists and run.options.limit_val_batches != 0:
        warn("LD051", f"{name} has validation_step() and no validation loader is given, so validation is left out.")


def _warn_of_two_transfers(run: Run) -> None:
    """Say which of two hooks that put batches on the device is called."""
    if run.datamodule is None:
        return
    for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        if overrides(run.datamodule, hook, LightningDataModule) and overrides(run.module, hook, LightningModule):
            data, module = type(run.datamodule).__name__, type(run.module).__name__
            warn("LD289", f"{data} and {module} both have {hook}(): {data}'s is called. Leave one out.", subject=hook)


_SETTINGS = ("automatic_optimization", "example_input_array", "strict_loading")


@functools.lru_cache(maxsize=4096)
def _meant_setting(attribute: str) -> str:
    """The setting that ``attribute`` is a misspelling of; empty when it is none."""
    close = difflib.get_close_matches(attribute, _SETTINGS, n=1, cutoff=0.9)
    return close[0] if close and attribute not in _SETTINGS else ""


def _check_state_keys(callbacks: list[Callback]) -> None:
    """Two callbacks with one key would overwrite each other's state in checkpoints."""
    seen: set[str] = set()
    for callback in callbacks:
        if not overrides(callback, "state_dict", Callback):
            continue
        if callback.state_key in seen:
            raise MisconfigurationError(
                f"Two callbacks would keep their state under the same name, {callback.state_key!r}. "
                "Override state_key so that they differ."
            )
        seen.add(callback.state_key)


def _check_places(run: Run) -> None:
    """Refuse a ``self.log`` where none can be, which would end the run when it gets there."""
    for owner, base in ((run.module, LightningModule), *((callback, Callback) for callback in run.callbacks)):
        if overrides(owner, "log", base):
            continue
        for method, by_step in (call for cls in user_classes(owner) for call in log_calls(cls, HOOKS)):
            if _does_not_run(method, run):
                continue
            where = f"{type(owner).__name__}.{method}()"
            if method not in PLACES:
                raise MisconfigurationError(
                    f"{where} calls self.log, and no values are collected there. Log in on_train_epoch_end or "
                    "on_validation_epoch_end, or hand the value to the logger: self.logger.log_metrics({...})."
                )
            if by_step and not PLACES[method][2]:
                raise MisconfigurationError(
                    f"{where} calls self.log with on_step=True, and only on_epoch=True works there. Leave on_step out."
                )


def _monitors(run: Run) -> Iterator[tuple[str, str]]:
    """Every callback that insists on a metric, and the metric's name."""
    for callback in run.callbacks:
        # strict is False where a missing metric is allowed for.
        if getattr(callback, "monitors", False) and getattr(callback, "strict", True):
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and "lr-" not in monitor:  # as LearningRateMonitor's names are
                yield type(callback).__name__, monitor


def check_loaders_of_monitors(run: Run, loaders: list[str]) -> None:
    """Refuse a monitored name without the name of the loader where there are several, and with it where not."""
    classes = _logging_classes(run)
    by_loader = ("validation_step", "validation_step_end", "on_validation_batch_start", "on_validation_batch_end")
    others = logged_names(classes, {*by_loader, *_unused_methods(run, classes)} - called_names(classes))
    if others is None or mentions(classes, "add_dataloader_idx"):
        return
    ends = [f"/{name}" for name in loaders] if len(loaders) > 1 else [""]
    logged = logged_names(classes, _unused_methods(run, classes) - called_names(classes))
    for watcher, monitor in _monitors(run):
        bare = next((monitor.removesuffix(end) for end in ends if end and monitor.endswith(end)), None)
        bare = _bare(monitor, logged or ()) if bare is None else bare
        if not _is_logged(monitor, others) and not any(monitor == bare + end for end in ends):
            raise MisconfigurationError(
                f"{watcher}(monitor={monitor!r}) matches nothing that is logged with {len(loaders)} validation "
                f"loader{'s' if len(loaders) > 1 else ''}. Give {' or '.join(repr(bare + end) for end in ends)}."
            )


def warn_of_broken_monitors(run: Run, found: Iterable[Mapping[str, float]]) -> None:
    """Say so when the metric by which checkpoints are ranked has become NaN: it can tell no better from worse."""
    for callback in run.callbacks:
        monitor = getattr(callback, "monitor", None)
        if not getattr(callback, "monitors", False) or getattr(callback, "may_end_training", False):
            continue  # what ends training has a rule for such values
        if any(math.isnan(metrics.get(monitor, 0.0)) for metrics in found if isinstance(monitor, str)):
            warn(
                "LD292",
                f"{type(callback).__name__}(monitor={monitor!r}): {monitor} is nan at step "
                f"{run.state.position.global_step}, which counts as worst. Look at what it is made of.",
                subject=str(monitor),
            )


def _logging_classes(run: Run) -> list[type]:
    modules = [part for part in run.module.modules() if isinstance(part, LightningModule)]
    return [cls for owner in (*modules, *run.callbacks) for cls in user_classes(owner)]


def _unused_methods(run: Run, classes: list[type]) -> set[str]:
    return {name for cls in classes for name in vars(cls) if _does_not_run(name, run)}


def _bare(monitor: str, logged: Collection[str]) -> str:
    """``monitor`` without the name of a loader, which may be any key: as much of it, up to a slash, as is logged."""
    parts = monitor.split("/")
    beginnings = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    otherwise = re.sub(r"/dataloader_idx_\d+$", "", monitor)
    return next((name for name in beginnings if _is_logged(name, logged)), otherwise)


def _check_monitor(run: Run, watcher: str, monitor: str) -> None:
    """Refuse a monitored name that no ``self.log`` in sight can produce."""
    classes = _logging_classes(run)
    unused = _unused_methods(run, classes) - called_names(classes)
    logged = logged_names(classes, unused)
    if logged is None or _matches(monitor, logged):
        return
    plain = sorted(map(readable, logged))
    elsewhere = run.validates and _matches(monitor, logged_names(classes) or ())
    raise MissingMetricError(
        f"{watcher}(monitor={monitor!r}) matches nothing that is logged in this fit. "
        f"Logged are: {', '.join(plain) or 'no names at all'}."
        + (f" {monitor!r} is logged in a step that fit does not run." if elsewhere else _without_validation(run))
        + nearest(monitor, [name for name in plain if "*" not in name])
    )


def _matches(monitor: str, logged: Collection[str]) -> bool:
    return _is_logged(_bare(monitor, logged), logged)


def _is_logged(name: str, logged: Collection[str]) -> bool:
    names = {name, name.removesuffix("_step"), name.removesuffix("_epoch")}
    return any(re.fullmatch(pattern, name) for pattern in logged for name in names)


def _does_not_run(method: str, run: Run) -> bool:
    silent = ("test", "predict") if run.validates else ("test", "predict", "validation")
    names = {f"{word}_{what}" for word in silent for what in ("step", "step_end", "epoch_end")}
    return method in names or any(method.startswith(f"on_{word}_") for word in silent)


def _without_validation(run: Run) -> str:
    if run.validates:
        return ""
    why = "there is no validation loader" if not run.sources["val"].exists else "it is left out"
    return f" Validation does not run, as {why}."
