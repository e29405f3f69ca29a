"""Writing the checkpoints that were asked for, at once or in the background, and telling who asked how it went."""

from __future__ import annotations

from typing import Any

from leyden.core.checkpoint import capture
from leyden.core.run import Run
from leyden.core.state import SaveRequest, Status
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.utils.errors import CheckpointError, warn
from leyden.utils.lazy import LazyModule

_background = LazyModule("leyden.fabric.async_checkpoint_io")
_unsafe = LazyModule("leyden.fabric.unsafe")

# Where the errors are defined that pickle and torch raise.
_WITH_THE_CHECKPOINT = ("builtins", "pickle", "_pickle", "torch")


def write_asked(run: Run) -> None:
    """Write the checkpoints that callbacks asked for, when those that are still being written are done.

    Raises:
        CheckpointError: One could not be written, and who asked for it does not put up with that.
    """
    if run.check is not None:
        run.check.settle()  # no loss is kept that is not finite
    began, requests = run.times.clock(), run.state.save_requests
    count = len(requests)
    settle(run)
    captured: dict[tuple[bool, int], dict[str, Any]] = {}
    while requests:
        request = requests.pop(0)
        kind = (request.weights_only, request.epoch)
        if kind not in captured:
            captured[kind] = capture(run, request.weights_only, request.epoch)
        error = _write_one(run, captured[kind], request)
        if error is not None and run.state.outstanding:
            # It may be that of one which was handed over before; what nobody answers for is this one's.
            answered = (nobodys := _settle(run, error)) is None
            error = _write_one(run, captured[kind], request) if answered else nobodys
        if error is not None:
            captured.clear()  # callbacks have it in there that the file was written
            _give_up(request, error)
    run.times.add("checkpoints", began, count)


def write(run: Run, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
    """Write ``checkpoint`` to ``path``, whole or not at all.

    A CheckpointIO that writes in the background may still be at it on return, but only while a run goes on.
    """
    began = run.times.clock()
    settle(run)
    _warn_of_unsafe_places(checkpoint)
    run.strategy.save_checkpoint(checkpoint, path, storage_options)
    if run.state.status is not Status.RUNNING:
        run.strategy.checkpoint_io.wait()
    run.times.add("checkpoints", began)


def settle(run: Run) -> None:
    """Wait for the files that are being written in the background, and tell those who asked for them how it went.

    Raises:
        CheckpointError: One could not be written, and who asked for it does not put up with that.
    """
    began = run.times.clock()
    if (nobodys := _settle(run)) is not None:
        raise nobodys
    run.times.add("checkpoints", began, 0)


def end_saving(run: Run) -> None:
    """Wait for what is being written in the background, whoever asked for it, and end the threads that do it."""
    for io in _ios(run):
        io.teardown()


def _settle(run: Run, failure: Exception | None = None) -> Exception | None:
    """As ``settle``; returns the error, ``failure`` or one that comes up, that is of no file somebody asked for."""
    for io in _ios(run):
        try:
            io.wait()
        except Exception as error:
            failure = failure or error
        for mark in io.finished():
            mark()
    outstanding, run.state.outstanding = run.state.outstanding, []
    lost = [request for request in outstanding if not request.safe]
    fatal: Exception | None = None
    for request in lost:
        try:
            _give_up(request, failure or CheckpointError(f"Could not save the checkpoint {request.path}."))
        except Exception as error:
            fatal = fatal or error
    for request in outstanding:
        if request.safe and request.written is not None:
            request.written(request.path)
    if fatal is not None:
        raise fatal
    return None if lost else failure


def _ios(run: Run) -> list[CheckpointIO]:
    return [io for io in (run.strategy.checkpoint_io, run.state.background_io) if io is not None]


def _write_one(run: Run, checkpoint: dict[str, Any], request: SaveRequest) -> Exception | None:
    """Write what ``request`` asks for, or have it written in the background; returns why that cannot be."""
    _warn_of_unsafe_places(checkpoint)
    io, state = run.strategy.checkpoint_io, run.state
    try:
        if request.in_background and type(io).finished is CheckpointIO.finished:  # it writes at once
            io = state.background_io = state.background_io or _background.AsyncCheckpointIO(io)
            if run.strategy.is_global_zero:
                io.save_checkpoint(checkpoint, request.path)
        else:
            run.strategy.save_checkpoint(checkpoint, request.path)
    except Exception as error:
        return error

    def mark(path: str) -> None:
        request.safe = True

    io.when_written(request.path, mark)
    if not request.safe:
        state.outstanding.append(request)
    elif request.written is not None:
        request.written(request.path)
    return None


def _give_up(request: SaveRequest, error: Exception) -> None:
    """Leave it to who asked to go on without the file, where the reason may pass; else the run ends."""
    if request.failed is None or not _may_pass(error):
        raise error
    request.failed(request.path, error)


def _may_pass(error: Exception) -> bool:
    """True for what a disk or a network refuses; False for what is wrong with the checkpoint itself."""
    if isinstance(error, CheckpointError):
        cause = error.__cause__
        # Errors of object stores have classes of their own.
        return cause is None or isinstance(cause, OSError) or type(cause).__module__ not in _WITH_THE_CHECKPOINT
    return isinstance(error, OSError)


def _warn_of_unsafe_places(checkpoint: dict[str, Any]) -> None:
    if places := _unsafe.unsafe_places(checkpoint):
        warn(
            "LD040",
            f"The checkpoint holds {', '.join(places[:3])}, which can only be read with weights_only=False. "
            "Keep plain numbers, strings, containers and tensors in state_dict() and on_save_checkpoint().",
            subject=places[0],
        )
