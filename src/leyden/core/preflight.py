"""What can be refused before training starts."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.core.hooks import overrides, takes
from leyden.core.module import LightningModule
from leyden.core.run import KIND, WORD, Run
from leyden.core.state import Fn, Stage
from leyden.utils.errors import MisconfigurationError, NotBuiltError, nearest, warn

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
}
_STAGE_OF = {Fn.FIT: Stage.TRAIN, Fn.VALIDATE: Stage.VALIDATE, Fn.TEST: Stage.TEST, Fn.PREDICT: Stage.PREDICT}
_HOOK_PREFIXES = ("on_", "training_", "validation_", "test_", "predict_", "configure_", "train_", "val_", "prepare_")


def check_run(run: Run) -> None:
    """Refuse a run that cannot work.

    Raises:
        MisconfigurationError: Something is missing, misspelt or contradictory; the message says what and what to do.
    """
    for owner, base in _owners(run):
        _check_spelling(owner, base)
    _check_step_and_loader(run)
    if run.fn is Fn.FIT:
        _check_training(run)
        _check_state_keys(run.callbacks)
        _check_monitors(run)


def _owners(run: Run) -> Iterator[tuple[Any, type]]:
    yield run.module, LightningModule
    if run.datamodule is not None:
        yield run.datamodule, LightningDataModule
    for callback in run.callbacks:
        yield callback, Callback


def _check_spelling(owner: Any, base: type) -> None:
    """A method whose name is almost a hook's would never be called."""
    known = {name for name in dir(base) if name.startswith(_HOOK_PREFIXES)}
    for cls in _user_classes(owner):
        for name, value in vars(cls).items():
            if not name.startswith(_HOOK_PREFIXES) or not inspect.isfunction(value) or name in known:
                continue
            if name in _FORMER_HOOKS and base is LightningModule:
                raise NotBuiltError(f"{cls.__name__}.{name}(), a hook of Lightning 1.x,", _FORMER_HOOKS[name])
            if any(name.startswith(f"{hook}_") for hook in known):
                continue  # a helper such as training_step_of_discriminator
            if close := difflib.get_close_matches(name, known, n=1, cutoff=0.88):
                raise MisconfigurationError(
                    f"{cls.__name__}.{name}() is not a hook, so it would never be called. Did you mean {close[0]!r}? "
                    "If it is a method of your own, give it a name less like a hook's."
                )


def _user_classes(owner: Any) -> list[type]:
    """The classes of ``owner`` that are neither torch's nor the framework's."""
    framework = ("torch.", "leyden.core.", "leyden.callbacks.", "builtins.")
    return [cls for cls in type(owner).__mro__ if not f"{cls.__module__}.".startswith(framework)]


def _check_step_and_loader(run: Run) -> None:
    stage = _STAGE_OF[run.fn]
    module, step, source = run.module, f"{_step_word(stage)}_step", run.sources[KIND[stage]]
    name = type(module).__name__
    if stage is Stage.PREDICT:
        if not overrides(module, step, LightningModule) and type(module).forward is LightningModule.forward:
            raise MisconfigurationError(f"{name} has neither predict_step() nor forward(). Define one to predict.")
    elif not overrides(module, step, LightningModule):
        raise MisconfigurationError(
            f"{name} has no {step}(). Define {step}(self, batch, batch_idx) to call trainer.{run.fn}()."
        )
    if not source.exists:
        argument = "train_dataloaders" if run.fn is Fn.FIT else "dataloaders"
        raise MisconfigurationError(
            f"trainer.{run.fn}() has no data. Pass {argument}=, or a datamodule, or define {KIND[stage]}_dataloader() "
            f"in {name}."
        )


def _step_word(stage: Stage) -> str:
    return "training" if stage is Stage.TRAIN else WORD[stage]


def _check_training(run: Run) -> None:
    module, options = run.module, run.options
    name = type(module).__name__
    if not overrides(module, "configure_optimizers", LightningModule):
        raise MisconfigurationError(
            f"{name} has no configure_optimizers(). Define it, for example: "
            "return torch.optim.Adam(self.parameters(), lr=1e-3)."
        )
    step = module.training_step
    if not takes(step, 1) and not takes(step, 2):
        hint = " Several optimizers need manual optimization." if "optimizer_idx" in _parameters(step) else ""
        raise MisconfigurationError(
            f"{name}.training_step{inspect.signature(step)} must take (batch) or (batch, batch_idx).{hint}"
        )
    has_step, source = overrides(module, "validation_step", LightningModule), run.sources["val"]
    if source.exists and not has_step:
        warn("LD050", f"{source.name} is given and {name} has no validation_step(), so validation is left out.")
    if has_step and not source.exists and options.limit_val_batches != 0:
        warn("LD051", f"{name} has validation_step() and no validation loader is given, so validation is left out.")
    if not module.automatic_optimization:
        if options.gradient_clip_val:
            raise MisconfigurationError(
                f"Trainer(gradient_clip_val={options.gradient_clip_val}) does nothing in manual optimization. "
                "Call self.clip_gradients(optimizer, gradient_clip_val=...) in training_step."
            )
        if options.accumulate_grad_batches != 1:
            raise MisconfigurationError(
                f"Trainer(accumulate_grad_batches={options.accumulate_grad_batches}) does nothing in manual "
                "optimization. Step the optimizer every so many batches in training_step."
            )


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


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


def _check_monitors(run: Run) -> None:
    """A monitored name that no ``self.log`` in sight can produce."""
    monitors = [(c, m) for c in run.callbacks if isinstance(m := getattr(c, "monitor", None), str)]
    if not monitors:
        return
    logged = logged_names([*(m for m in run.module.modules() if isinstance(m, LightningModule)), *run.callbacks])
    if logged is None:
        return
    for callback, monitor in monitors:
        bare = re.sub(r"/dataloader_idx_\d+$", "", monitor)
        names = {bare, bare.removesuffix("_step"), bare.removesuffix("_epoch")}
        if monitor.startswith("lr-") or any(re.fullmatch(pattern, name) for pattern in logged for name in names):
            continue
        plain = sorted(pattern.replace("\\", "") for pattern in logged)
        raise MisconfigurationError(
            f"{type(callback).__name__}(monitor={monitor!r}) matches nothing that is logged. "
            f"Logged are: {', '.join(plain) or 'no names at all'}.{nearest(monitor, plain)}"
        )


def logged_names(owners: list[Any]) -> set[str] | None:
    """Patterns of all names that the classes of ``owners`` log, read off their source; None when that cannot tell.

    It cannot where source is missing, a name is computed, or ``self`` is handed to a function, which may log too.
    """
    found: set[str] = set()
    for cls in {cls for owner in owners for cls in _user_classes(owner)}:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):
            return None
        patterns = _logged_in(tree)
        if patterns is None:
            return None
        found |= patterns
    return found


def _logged_in(tree: ast.AST) -> set[str] | None:
    found: set[str] = set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("log", "log_dict")
            and _is_module(node.value)
            and id(node) not in called
        ):
            return None
    for call in calls:
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if any(_is_module(argument) for argument in arguments) and not _is_super(call.func):
            return None
        if not isinstance(call.func, ast.Attribute) or not _is_module(call.func.value):
            continue
        if call.func.attr not in ("log", "log_dict"):
            continue
        first = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg in _NAME_KEYWORDS), None)
        names = first.keys if isinstance(first, ast.Dict) and call.func.attr == "log_dict" else [first]
        for name in names:
            if (pattern := _pattern(name)) is None:
                return None
            found.add(pattern)
    return found


_NAME_KEYWORDS = ("name", "dictionary")


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "pl_module", "module")


def _is_super(function: ast.AST) -> bool:
    return isinstance(function, ast.Name) and function.id == "super"


def _pattern(node: ast.AST | None) -> str | None:
    """A regular expression for the names that ``node`` may stand for; None when it may be anything."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [_pattern(part) if isinstance(part, ast.Constant) else ".*" for part in node.values]
        return "".join(part or ".*" for part in parts)
    return None
