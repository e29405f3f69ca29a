"""What the source of user code takes from Lightning 1.x besides hooks: found before it runs."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from leyden.core.source import Words, functions, methods, tree_of, user_classes, words
from leyden.utils.errors import MisconfigurationError, warn

# Attributes of a LightningModule, and of a LightningDataModule, and what to do instead.
_OF_MODULES = {
    "datamodule": "Write self.trainer.datamodule.",
    "summarize": "Write leyden.utilities.model_summary.summarize(self, max_depth=1).",
    "model_size": "Write leyden.utilities.model_summary.summarize(self).model_size.",
    "precision": "Write self.trainer.precision.",
    "use_amp": "Write self.trainer.precision.endswith('-mixed').",
    "get_progress_bar_dict": "Write self.log(name, value, prog_bar=True), or read self.trainer.progress_bar_metrics.",
    "write_prediction": "Return it from predict_step and call trainer.predict().",
    "write_prediction_dict": "Return it from predict_step and call trainer.predict().",
    "write_predictions": "Return them from predict_step and call trainer.predict().",
    "grad_norm": "Write leyden.utilities.grad_norm(self, norm_type=2).",
    "log_grad_norm": "Write self.log_dict(leyden.utilities.grad_norm(self, norm_type=2)).",
    "truncated_bptt_steps": "Set automatic_optimization = False and split the batch in training_step.",
}
_OF_DATAMODULES = {
    **dict.fromkeys(
        ("train_transforms", "val_transforms", "test_transforms", "dims"), "Make it an attribute of yours."
    ),
    "size": "Ask the dataset: len(self.dataset), or its items' shape.",
    **{
        f"has_{done}": "Keep an attribute of your own: nobody else calls it."
        for done in (
            "prepared_data",
            *(f"{what}_{stage}" for what in ("setup", "teardown") for stage in ("fit", "validate", "test", "predict")),
        )
    },
}
_LOG_OPTIONS = {
    "sync_dist_op": "Write reduce_fx='sum', or another of 'mean', 'min' and 'max'.",
    "tbptt_reduce_fx": "Leave it out.",
    "tbptt_pad_token": "Leave it out.",
}
# Methods of a module that called super() with more than they take today, and what they take.
_CALLS = {
    "optimizer_step": "epoch, batch_idx, optimizer, optimizer_closure",
    "optimizer_zero_grad": "epoch, batch_idx, optimizer",
    "configure_gradient_clipping": "optimizer, gradient_clip_val, gradient_clip_algorithm",
    "lr_scheduler_step": "scheduler, metric",
    "backward": "loss",
    "on_before_optimizer_step": "optimizer",
}
# What Lightning 1.x had, by the kind of class.
_MEMBERS = {"LightningModule": _OF_MODULES, "LightningDataModule": _OF_DATAMODULES}
_FORMER_ARGUMENT = re.compile(r"opt(imizer)?_(idx|index|i)|on_tpu|using_native_amp|using_lbfgs")
_LOGS = frozenset(("log", "progress_bar"))
_STEPS = tuple(f"{stage}_step" for stage in ("training", "validation", "test", "predict"))


def check_former_code(owners: Iterable[tuple[Any, type]]) -> None:
    """Look through the classes of ``owners`` for what Lightning 1.x had and Leyden has under another name, or not.

    What may work after all is left alone: attributes that somebody assigns or looks for, and calls of a parent's method
    that is the user's own.

    Args:
        owners: The module, the datamodule and the callbacks of a run, each with the class of ours that it derives from.

    Raises:
        MisconfigurationError: The code cannot work; the message says where, and what to write.
    """
    by_kind = [(owner, base.__name__) for owner, base in owners]
    everybody = [cls for owner, _ in by_kind for cls in user_classes(owner)]
    for owner, kind in by_kind:
        for cls in user_classes(owner):
            for name, function in functions(cls).items():
                if _may_be_former(name, function, kind) and (method := tree_of(name, function)) is not None:
                    _check_method(method, f"{cls.__name__}.{name}()", kind, owner, cls, everybody)


def _may_be_former(name: str, function: FunctionType, kind: str) -> bool:
    """False where nothing that ``function`` mentions can be what the checks below look for."""
    return _may_mention_former(name, words(function), kind)


@functools.lru_cache(maxsize=4096)
def _may_mention_former(name: str, found: Words, kind: str) -> bool:
    mentioned, strings = found
    if not _MEMBERS.get(kind, {}).keys().isdisjoint(mentioned):
        return True
    if kind == "LightningDataModule":
        return False
    if not _LOG_OPTIONS.keys().isdisjoint(strings):
        return True
    if kind == "LightningModule":
        calls_parent = "super" in mentioned and not _CALLS.keys().isdisjoint(mentioned)
        return calls_parent or (name.removesuffix("_end") in _STEPS and not _LOGS.isdisjoint(strings))
    return name in ("on_save_checkpoint", "on_load_checkpoint")


def _check_method(method: ast.FunctionDef, where: str, kind: str, owner: Any, cls: type, everybody: list[type]) -> None:
    if members := _MEMBERS.get(kind):
        _check_members(method, where, members, owner, everybody)
    if kind != "LightningDataModule":
        _check_log(method, where)
    if kind == "LightningModule":
        _check_super(method, where, owner, cls)
        _check_step(method, where)
    if kind == "Callback":
        _check_state(method, where, owner)


def _has(owner: Any, name: str) -> bool:
    """True when ``owner`` has the attribute, or may have it later: a property may need the Trainer."""
    if hasattr(type(owner), name):
        return True
    try:
        getattr(owner, name)
    except AttributeError:
        return False
    except Exception:  # of a __getattr__ of the user's
        return True
    return True


def _is_written(attribute: str, classes: Iterable[type]) -> bool:
    """True when the classes assign ``attribute``, on whatever object, or may look for it by name."""
    for node in (node for cls in classes for method in methods(cls).values() if method for node in ast.walk(method)):
        if isinstance(node, ast.Name) and node.id in ("setattr", "vars"):
            return True
        if isinstance(node, ast.Attribute):
            if node.attr == "__dict__" or (node.attr == attribute and not isinstance(node.ctx, ast.Load)):
                return True
        elif isinstance(node, ast.Constant) and node.value == attribute:
            return True
    return False


def _check_members(
    method: ast.FunctionDef, where: str, former: dict[str, str], owner: Any, everybody: list[type]
) -> None:
    own = method.args.args[0].arg if method.args.args else ""
    waiting: list[ast.AST] = list(method.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.Try) and node.handlers):
            continue  # another self; or a failure is allowed for
        waiting.extend(ast.iter_child_nodes(node))
        if not isinstance(node, ast.Attribute) or node.attr not in former:
            continue
        if not isinstance(node.value, ast.Name) or node.value.id != own:
            continue
        if not _has(owner, node.attr) and not _is_written(node.attr, everybody):
            raise MisconfigurationError(
                f"{where} reads {own}.{node.attr}, which Lightning 1.x had and Leyden has not. {former[node.attr]}"
            )


def _check_log(method: ast.FunctionDef, where: str) -> None:
    for call in _calls(method):
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr in ("log", "log_dict"):
            for keyword in call.keywords:
                if keyword.arg in _LOG_OPTIONS:
                    raise MisconfigurationError(
                        f"{where} calls self.{function.attr}({keyword.arg}=...), an option of Lightning 1.x. "
                        f"{_LOG_OPTIONS[keyword.arg]}"
                    )


def _check_super(method: ast.FunctionDef, where: str, owner: Any, cls: type) -> None:
    ancestors = type(owner).__mro__
    following = ancestors[ancestors.index(cls) + 1 :]
    for call in _calls(method):
        function = call.func
        if not (isinstance(function, ast.Attribute) and function.attr in _CALLS and _is_super(function.value)):
            continue
        definer = next((each for each in following if function.attr in vars(each)), None)
        if definer in user_classes(owner):
            continue
        given = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
        given += [keyword.arg for keyword in call.keywords if keyword.arg]
        if former := [name for name in given if _FORMER_ARGUMENT.fullmatch(name)]:
            raise MisconfigurationError(
                f"{where} hands {', '.join(former)} to super().{function.attr}(), which does not take it any more. "
                f"Write super().{function.attr}({_CALLS[function.attr]})."
            )


def _check_step(method: ast.FunctionDef, where: str) -> None:
    """A step that returns what 0.x logged."""
    if method.name.removesuffix("_end") not in _STEPS:
        return
    for made in (node for node in ast.walk(method) if isinstance(node, ast.Dict)):
        keys = [key.value for key in made.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        former = [key for key in keys if key in _LOGS]
        if former and any(key.endswith("loss") for key in keys):
            warn(
                "LD253",
                f"{where} returns {' and '.join(map(repr, former))}, which Lightning before 1.0 sent to the loggers "
                "and the bar. Here it goes nowhere. Write self.log_dict(values, prog_bar=True).",
                subject=where,
            )


def _check_state(method: ast.FunctionDef, where: str, owner: Any) -> None:
    """The state of a callback, which 1.x took from what on_save_checkpoint returned."""
    names = [argument.arg for argument in method.args.args]
    if method.name == "on_save_checkpoint" and not any("state_dict" in vars(cls) for cls in user_classes(owner)):
        for returned in _returns(method):
            nothing = isinstance(returned, ast.Constant) and returned.value is None
            checkpoint = isinstance(returned, ast.Name) and returned.id in names
            if not nothing and not checkpoint and not _mentions_super(returned):
                raise MisconfigurationError(
                    f"{where} returns the callback's state, as in Lightning 1.x; today that goes nowhere. Return it "
                    "from state_dict(self), and take it in load_state_dict(self, state_dict)."
                )
    if method.name == "on_load_checkpoint" and names[3:] and names[3] in ("callback_state", "callback_states"):
        raise MisconfigurationError(
            f"{where} takes the callback's state, as in Lightning 1.x; today it gets the whole checkpoint. Take the "
            "state in load_state_dict(self, state_dict); or call the parameter checkpoint."
        )


def _calls(method: ast.FunctionDef) -> Iterator[ast.Call]:
    return (node for node in ast.walk(method) if isinstance(node, ast.Call))


def _returns(method: ast.FunctionDef) -> Iterator[Any]:
    """What ``method`` itself, and no function inside it, returns."""
    waiting: list[ast.AST] = list(method.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _mentions_super(node: ast.AST) -> bool:
    return any(map(_is_super, ast.walk(node)))
