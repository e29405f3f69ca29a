"""Writing the checkpoints that were asked for."""

from __future__ import annotations

from typing import Any

from leyden.core.checkpoint import capture
from leyden.core.run import Run
from leyden.fabric.checkpoint_io import unsafe_places
from leyden.utils.errors import warn


def write_asked(run: Run) -> None:
    """Write the checkpoints that callbacks asked for."""
    requests, run.state.save_requests = run.state.save_requests, []
    captured: dict[tuple[bool, int], dict[str, Any]] = {}
    for request in requests:
        kind = (request.weights_only, request.epoch)
        if kind not in captured:
            captured[kind] = capture(run, request.weights_only, request.epoch)
        write(run, captured[kind], request.path)
        if request.written is not None:
            request.written(request.path)


def write(run: Run, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
    """Write ``checkpoint`` to ``path``, whole or not at all."""
    if places := unsafe_places(checkpoint):
        warn(
            "LD040",
            f"The checkpoint holds {', '.join(places[:3])}, which can only be read with weights_only=False. "
            "Keep plain numbers, strings, containers and tensors in state_dict() and on_save_checkpoint().",
            subject=places[0],
        )
    run.strategy.save_checkpoint(checkpoint, path, storage_options)
