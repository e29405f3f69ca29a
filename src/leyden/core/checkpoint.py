"""capture(run) and restore(run): the same parts, in the same order, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from leyden.core.callback import Callback
from leyden.core.hooks import overrides
from leyden.core.loading import load_weights
from leyden.core.run import Run
from leyden.core.state import VALIDATION, Fn
from leyden.utils.dynamo import compiler_put_off
from leyden.utils.errors import CheckpointError, warn
from leyden.utils.hparams import plain_hyperparameters
from leyden.utils.lazy import LazyModule
from leyden.utils.rank import say
from leyden.utils.seed import rng_state, set_rng_state

_former = LazyModule("leyden.core.former_checkpoints")
# The Lightning whose layout this is; its readers look for the key.
LAYOUT_VERSION = "2.6.6"


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint.

    Attributes:
        key: Its place in the file, or how to find it.
        capture: Takes it from the run; None for nothing to keep.
        restore: Gives it back to the run.
        with_model: Restored before on_fit_start and for every method of the Trainer; the others only by fit, after
            on_fit_start, when the optimizers exist.
        to_resume: Left out of checkpoints of the weights alone.
    """

    key: str | Callable[[Run], str]
    capture: Callable[[Run], Any]
    restore: Callable[[Run, Any], None]
    with_model: bool = False
    to_resume: bool = True

    def place(self, run: Run) -> str:
        """The part's key in checkpoints of ``run``."""
        return self.key if isinstance(self.key, str) else self.key(run)


def capture(run: Run, weights_only: bool = False, epoch: int | None = None) -> dict[str, Any]:
    """Everything a run must remember, in types that ``torch.load(weights_only=True)`` reads.

    Args:
        run: The run, at a place where no hook is half done.
        weights_only: Leave out what only resuming needs.
        epoch: Index of the epoch in which the checkpoint was asked for; default the one in progress.
    """
    position = run.state.position
    checkpoint_epoch = position.epoch if epoch is None else epoch
    checkpoint: dict[str, Any] = {
        "epoch": checkpoint_epoch,
        "global_step": position.global_step,
        "pytorch-lightning_version": LAYOUT_VERSION,
        "loops": {"fit_loop": _lightning_progress(run, checkpoint_epoch)},
    }
    for part in PARTS:
        if not (weights_only and part.to_resume) and (value := part.capture(run)) is not None:
            checkpoint[part.place(run)] = value
    for owner, prefix in ((run.module, ""), (run.datamodule, "datamodule_")):
        if owner is not None:
            checkpoint.update(_hyperparameters(owner, prefix))
    if not weights_only:
        for callback in run.callbacks:
            if overrides(callback, "on_save_checkpoint", Callback):
                callback.on_save_checkpoint(run.trainer, run.module, checkpoint)
    run.module.on_save_checkpoint(checkpoint)
    return checkpoint


def restore_model(run: Run) -> None:
    """Give the checkpoint's model back, before on_fit_start."""
    checkpoint = run.checkpoint
    if checkpoint is None:
        return
    if run.fn is Fn.FIT and "optimizer_states" not in checkpoint:
        raise CheckpointError(
            f"{run.trainer.ckpt_path} holds weights alone, so training cannot be resumed from it. To start from its "
            f"weights use {type(run.module).__name__}.load_from_checkpoint(path)."
        )
    if run.fn is Fn.FIT:
        _check_epochs(run, checkpoint.get("leyden", {}).get("position", {}).get("epoch", 0))
    run.module.on_load_checkpoint(checkpoint)
    for part in PARTS:
        if part.with_model and (run.fn is Fn.FIT or not part.to_resume):
            _restore(part, run, checkpoint)
    if run.fn is not Fn.FIT:
        run.checkpoint = None


def _restore(part: Part, run: Run, checkpoint: dict[str, Any]) -> None:
    if (key := part.place(run)) in checkpoint:
        part.restore(run, checkpoint[key])


def restore_loop(run: Run) -> None:
    """Give the rest of the checkpoint back, when optimizers exist; training goes on from ``state.position``."""
    checkpoint, run.checkpoint = run.checkpoint, None
    if checkpoint is None:
        return
    for part in PARTS:
        if not part.with_model:
            _restore(part, run, checkpoint)
    if "leyden" not in checkpoint:
        _restore_lightning_progress(run, checkpoint)
        _check_epochs(run, run.state.position.epoch)


def _check_epochs(run: Run, epochs: int) -> None:
    limit = run.options.max_epochs
    if limit is not None and limit != -1 and epochs > limit:
        raise CheckpointError(
            f"{run.trainer.ckpt_path} has completed {epochs} epochs, more than Trainer(max_epochs={limit}). "
            "Give a larger max_epochs."
        )


def _capture_callbacks(run: Run) -> dict[str, Any]:
    return {c.state_key: state for c in run.callbacks if (state := c.state_dict())}


def _restore_callbacks(run: Run, states: dict[str, Any]) -> None:
    for callback in run.callbacks:
        if overrides(callback, "on_load_checkpoint", Callback):
            callback.on_load_checkpoint(run.trainer, run.module, run.checkpoint or {})
    here = {callback.state_key: callback for callback in run.callbacks}
    fitting = {key: key if key in here else _former.matching_key(key, here.keys() - states.keys()) for key in states}
    for key, state in states.items():
        if (own_key := fitting[key]) is not None:
            here[own_key].load_state_dict(state)
    if missing := sorted(key for key, own_key in fitting.items() if own_key is None):
        warn("LD041", f"The checkpoint has the state of callbacks that are not here: {', '.join(missing)}.")


def _capture_optimizers(run: Run) -> list[dict[str, Any]]:
    with compiler_put_off():
        return [run.state_of(optimizer) for optimizer in run.optimizers]


def _restore_optimizers(run: Run, states: list[dict[str, Any]]) -> None:
    if len(states) != len(run.optimizers):
        raise CheckpointError(
            f"{run.trainer.ckpt_path} has the state of {len(states)} optimizers, and configure_optimizers returned "
            f"{len(run.optimizers)}."
        )
    for optimizer, state in zip(run.optimizers, states, strict=True):
        options = list(optimizer.defaults)  # to which torch may add one as it loads a state
        try:
            with compiler_put_off():
                optimizer.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{run.trainer.ckpt_path} does not fit {type(optimizer).__name__} as configure_optimizers made it: "
                f"{error}."
            ) from error
        # torch takes the state of another class without a word, and fails at the first step.
        if lacking := [name for name in options if any(name not in g for g in optimizer.param_groups)]:
            raise CheckpointError(
                f"{run.trainer.ckpt_path} has the state of another optimizer than the {type(optimizer).__name__} that "
                f"configure_optimizers returned: it lacks {', '.join(lacking)}."
            )
    run.prefer_fused()


def _restore_schedulers(run: Run, states: list[dict[str, Any]]) -> None:
    if len(states) != len(run.schedulers):
        raise CheckpointError(
            f"{run.trainer.ckpt_path} has the state of {len(states)} schedulers, and configure_optimizers returned "
            f"{len(run.schedulers)}."
        )
    for config, state in zip(run.schedulers, states, strict=True):
        config.scheduler.load_state_dict(state)


def _capture_loop(run: Run) -> dict[str, Any]:
    """What Lightning's layout has no place for."""
    position = run.state.position
    loop: dict[str, Any] = {
        "position": position.state_dict(),
        "results": run.results.state_dict(),
        "rng": rng_state(),
        "epoch_rng": run.state.epoch_rng,
        "loader": run.train.state_dict(in_epoch=position.batch > 0) if hasattr(run, "train") else {},
        "precision": run.precision.state_dict(),
        "since_validation": 0.0 if run.validation_seconds == math.inf else time.monotonic() - run.validated_at,
        "evaluated": dict(run.evaluated),
        "window": _capture_window(run),
    }
    if position.tail == VALIDATION:  # it begins anew
        before = dict(run.before_validation)
        loop.update((key, before.pop(key)) for key in ("rng", "evaluated"))
        loop["results"].update(before)
    return loop


def _restore_loop(run: Run, state: dict[str, Any]) -> None:
    run.state.position.load_state_dict(state["position"])
    run.results.load_state_dict(state["results"])
    run.state.epoch_rng = state["epoch_rng"]
    run.loader_state = state["loader"]
    run.precision.load_state_dict(state["precision"])
    run.since_validation = state.get("since_validation", 0.0)
    run.evaluated.update(state.get("evaluated", {}))
    _restore_window(run, state.get("window"))
    set_rng_state(state["rng"])
    position = run.state.position
    where = f", after batch {position.batch}" if position.batch else ""
    say(f"Resuming from {run.trainer.ckpt_path}: epoch {position.epoch}{where}, step {position.global_step}.")


def _capture_window(run: Run) -> dict[str, Any] | None:
    """The gradients of an accumulation window that is not over; None between windows."""
    if not run.pending and not run.without_step:
        return None
    names: dict[Tensor, str] = {parameter: name for name, parameter in run.module.named_parameters()}
    return {
        "gradients": {name: p.grad.detach() for p, name in names.items() if p.grad is not None},
        "turns": [
            {
                "pending": turn.pending,
                "weight": turn.weight,
                "held": {names[p]: gradient for p, gradient in turn.held.items() if p in names},
            }
            for turn in run.turns
        ],
    }


def _restore_window(run: Run, window: dict[str, Any] | None) -> None:
    if window is None:
        return
    parameters = dict(run.module.named_parameters())

    def on_device(gradients: dict[str, Tensor]) -> dict[Tensor, Tensor]:
        here = {parameters[name]: gradient for name, gradient in gradients.items() if name in parameters}
        return {parameter: gradient.to(parameter.device, copy=True) for parameter, gradient in here.items()}

    for parameter, gradient in on_device(window["gradients"]).items():
        parameter.grad = gradient
    for turn, saved in zip(run.turns, window["turns"], strict=False):
        turn.pending, turn.weight, turn.held = saved["pending"], saved["weight"], on_device(saved["held"])


def _datamodule_key(run: Run) -> str:
    """The datamodule's key; in a checkpoint to go on from, the name of its class where that is what was written."""
    if run.datamodule is None:
        return "datamodule"
    key, saved = run.datamodule.state_key, run.checkpoint or {}
    name = type(run.datamodule).__qualname__
    return name if key not in saved and name in saved else key


PARTS = (
    Part(
        "state_dict",
        lambda run: run.module.state_dict(),
        lambda run, state: load_weights(run.module, state, run.module.strict_loading, str(run.trainer.ckpt_path)),
        with_model=True,
        to_resume=False,
    ),
    Part(
        _datamodule_key,
        lambda run: (run.datamodule.state_dict() or None) if run.datamodule is not None else None,
        lambda run, state: run.datamodule.load_state_dict(state) if run.datamodule is not None else None,
        with_model=True,
        to_resume=False,
    ),
    Part("callbacks", _capture_callbacks, _restore_callbacks, with_model=True),
    Part("optimizer_states", _capture_optimizers, _restore_optimizers),
    Part("lr_schedulers", lambda run: [c.scheduler.state_dict() for c in run.schedulers], _restore_schedulers),
    Part("leyden", _capture_loop, _restore_loop),
)


def _hyperparameters(owner: Any, prefix: str) -> dict[str, Any]:
    """The hyper-parameters of a module or datamodule, under Lightning's keys."""
    if not owner.hparams:
        return {}
    plain, left_out = plain_hyperparameters(owner.hparams)
    # Modules were warned about when they were saved.
    if left_out := [name for name in left_out if not isinstance(owner.hparams[name], nn.Module)]:
        warn(
            "LD043",
            f"Checkpoints leave out the hyper-parameters {', '.join(left_out)} of {type(owner).__name__}, which are "
            "not plain values; pass them to load_from_checkpoint. To say so in the code: "
            f"save_hyperparameters(ignore={left_out!r}).",
            subject=type(owner).__qualname__,
        )
    names = {"hparams_name": owner._hparams_name or "kwargs", "hyper_parameters": plain}
    return {f"{prefix}{key}": value for key, value in names.items()}


def _lightning_progress(run: Run, epoch: int) -> dict[str, Any]:
    """The position as Lightning writes it, for its readers."""
    position = run.state.position
    # Behind an epoch's last batch Lightning's readers go on with the next epoch.
    in_epoch = position.batch > 0 and not (hasattr(run, "train") and run.train.is_last)

    def count(number: int, names: tuple[str, ...] = ("ready", "completed", "started", "processed")) -> dict[str, int]:
        return dict.fromkeys(names, number)

    done, steps = ("ready", "completed"), position.global_step
    # Lightning's file of a completed epoch still says "n batches of epoch e are done".
    current = position.epoch if in_epoch or (epoch == position.epoch and not position.batch) else epoch + 1
    epochs = count(current)
    if in_epoch:
        epochs.update(ready=current + 1, started=current + 1)
    optimizer = {
        "step": {"total": count(steps, done), "current": count(steps, done)},
        "zero_grad": {
            "total": count(steps, (*done, "started")),
            "current": count(steps, (*done, "started")),
        },
    }
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": position.stepped_batches},
        "epoch_loop.batch_progress": {
            "total": count(position.batch_total),
            "current": count(position.batch),
            "is_last_batch": not in_epoch,
        },
        "epoch_loop.scheduler_progress": {"total": count(0, done), "current": count(0, done)},
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": {
            "total": count(steps, done),
            "current": count(steps, done),
        },
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {"total": count(0), "current": count(0), "is_last_batch": False},
        "epoch_progress": {"total": epochs, "current": epochs},
    }


def _restore_lightning_progress(run: Run, checkpoint: dict[str, Any]) -> None:
    """The position in a file that Lightning wrote."""
    position = run.state.position
    position.global_step = checkpoint.get("global_step", 0)
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs = loop.get("epoch_progress", {}).get("current", {})
    batches = loop.get("epoch_loop.batch_progress", {})
    position.epoch = epochs.get("processed", checkpoint.get("epoch", 0))
    mid_epoch = epochs.get("ready", 0) > epochs.get("processed", 0)
    position.batch = batches.get("current", {}).get("processed", 0) if mid_epoch else 0
    position.batches_before = batches.get("total", {}).get("processed", 0) - position.batch
    position.stepped_batches = loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", position.global_step)
    states = loop.get("state_dict", {}).get("combined_loader", [])
    run.loader_state = {"loader": states[0]} if len(states) == 1 else {"generators": []}
    say(f"Resuming from {run.trainer.ckpt_path}, which Lightning wrote: epoch {position.epoch}.")
