"""What a training step may return: the loss, or losses, in it, and what hooks see of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leyden.core.optimizers import Turn
from leyden.core.run import Run
from leyden.utils.errors import MisconfigurationError, warn


def loss_of(output: Any, run: Run) -> Tensor | None:
    """The loss in what ``training_step`` returned; None to skip the batch."""
    loss = output if isinstance(output, Tensor) else output.get("loss") if hasattr(output, "get") else None
    if isinstance(loss, Tensor):
        if loss.requires_grad and (loss.ndim == 0 or loss.numel() == 1):
            return loss
        if loss.requires_grad:
            raise MisconfigurationError(
                f"training_step returned a loss of shape {tuple(loss.shape)}; it must have one element. "
                "Reduce it, for example with .mean()."
            )
        if run.optimizers:
            raise MisconfigurationError(
                "training_step returned a loss without grad: it does not depend on a parameter that requires one. "
                "Look for .detach(), .item(), torch.no_grad() or requires_grad=False on its way."
            )
        return None
    if output is None:
        warn("LD033", "training_step returned None: the batch is skipped. Return a loss to train on it.")
        return None
    if hasattr(output, "get"):
        raise MisconfigurationError(
            f"training_step returned a dict without a tensor under 'loss'; its keys are {sorted(map(str, output))}."
        )
    raise MisconfigurationError(
        f"training_step returned {type(output).__name__}: {str(output)[:80]}. "
        "It may return the loss, a dict with 'loss', or None to skip the batch."
    )


def refuse_what_is_no_loss(output: Any, run: Run) -> None:
    """Say what is wrong with ``output``, which torch could not propagate; nothing if it is a loss.

    Raises:
        MisconfigurationError: It is none.
    """
    if isinstance(output, Tensor) and output.is_complex():
        raise MisconfigurationError(
            f"training_step returned a loss of {output.dtype}; it must be real. Take its .abs() or .real."
        ) from None
    try:
        loss_of(output, run)
    except MisconfigurationError as error:
        raise error from None


def losses_of(output: Any, run: Run, due: list[Turn]) -> list[tuple[Turn, Tensor]]:
    """The losses that a shared ``training_step`` returned for the optimizers whose turn it is."""
    names = [turn.name for turn in run.turns]
    if not isinstance(output, Mapping) or not any(name in output for name in names):
        raise MisconfigurationError(
            f"training_step must return a dict of losses by the names of the optimizers, {', '.join(names)}; or define "
            f"a step for each, such as training_step_{names[0]}. Got {type(output).__name__}: {str(output)[:80]}."
        )
    losses = [(turn, loss_of(output[turn.name], run)) for turn in due if turn.name in output]
    return [(turn, loss) for turn, loss in losses if loss is not None]


def seen_by_hooks(output: Any, run: Run) -> dict[str, Any]:
    """``outputs`` of on_train_batch_end: the loss detached, other keys as they are."""
    if output is None:
        return {}
    if isinstance(output, Tensor):
        return {"loss": output.detach()}
    losses = ("loss", *(turn.name for turn in run.turns))
    return {
        name: value.detach() if name in losses and isinstance(value, Tensor) else value
        for name, value in output.items()
    }
