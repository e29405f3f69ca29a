"""Batches that are copied to a GPU on a stream of their own, while it still works on the batch before."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from leyden.utils.tree import HasTo, move_data_to_device, tree_map

# Batches pinned here that the device has yet to come to; behind them, a batch goes as it does without this module.
_MOST_PINNED = 8


class Mark(Protocol):
    """A place in the work of a device."""

    def query(self) -> bool:
        """The device has come past it."""


class Device(Protocol):
    """What is asked of a device with a side stream. Nothing here waits for it, but ``move`` of memory not pinned."""

    def is_busy(self) -> bool:
        """There is work left on the stream in use."""

    def is_pinned(self, tensor: Tensor) -> bool:
        """The device reads ``tensor``'s memory by itself."""

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy that the device reads by itself, with the strides that ``tensor`` has on the device.

        Raises:
            RuntimeError: No more memory can be pinned.
        """

    def stage(self, pinned: Tensor) -> Tensor:
        """``pinned`` on the device, in memory of the side stream, which copies it."""

    def take(self, staged: Tensor) -> Tensor:
        """A copy by the stream in use, which first waits for what the side stream has to do by now."""

    def release(self) -> Mark:
        """Have the side stream wait for what the stream in use has to do by now, which the mark is behind."""

    def move(self, batch: Any) -> Any:
        """``batch`` on the device, by the stream in use."""


class SideCopies:
    """Moves batches to a device as ``move_data_to_device`` does, on a side stream where that gains anything.

    The loader is asked for a batch when it would be without: behind the step before and its hooks. So nothing is read
    ahead, and order, random numbers, position and hooks are the same. By then a GPU has only been told of that step
    and works on it, and the copy of the next batch goes on beside it. A GPU that has nothing left to do has nothing
    that a copy could go on beside: then the batch goes by the stream in use.

    A side stream has memory of its own, in which a batch waits until the stream in use copies it into memory of its
    own; then the side stream may write there again, and waits until it may. Copying on a device takes far less time
    than copying to it. For that, what is handed out is memory like any other, whoever keeps it for however long, and
    the side stream needs memory for one batch, however far the device is behind.

    Memory that is not pinned is copied into memory that is, which torch keeps and uses again once the device has read
    it. At most 8 batches lie there.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._most_pinned = _MOST_PINNED
        self._pinned: deque[Mark] = deque()  # where the device is done with each of the batches pinned here

    def __call__(self, batch: Any) -> Any:
        """``batch`` on the device."""
        device, marks = self._device, self._pinned
        if not device.is_busy():
            return device.move(batch)
        while marks and marks[0].query():
            marks.popleft()
        staged: list[Tensor] = []
        pins, pinned = len(marks) < self._most_pinned, False

        def carry(leaf: Any) -> Any:
            nonlocal pins, pinned
            if not _is_plain(leaf):
                return device.move(leaf)
            # The device reads pinned memory by itself only where it lies in one piece.
            if not (leaf.is_contiguous() and device.is_pinned(leaf)):
                if not pins:
                    return device.move(leaf)
                try:
                    leaf = device.pin(leaf)
                except RuntimeError:  # some systems have little; nobody asked for it
                    pins, self._most_pinned = False, 0
                    return device.move(leaf)
                pinned = True
            staged.append(device.stage(leaf))
            return device.take(staged[-1])

        try:
            return tree_map(carry, batch, HasTo)
        finally:
            if staged:  # memory of the side stream, to be let go of only behind this
                mark = device.release()
                if pinned:
                    marks.append(mark)


class Streams:
    """A device by torch's streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch: Any = torch.get_device_module(device)
        self._side = self._torch.Stream(device)
        self._staged = self._torch.Event()  # used again: a stream waits for what was recorded when it was told to

    def is_busy(self) -> bool:
        """There is work left on the stream in use."""
        return not self._in_use().query()

    def is_pinned(self, tensor: Tensor) -> bool:
        """``tensor`` is page-locked."""
        return tensor.is_pinned()

    def pin(self, tensor: Tensor) -> Tensor:
        """A page-locked copy; torch uses its memory again when the copies from it are done."""
        return torch.empty_like(tensor, pin_memory=True).copy_(tensor)

    def stage(self, pinned: Tensor) -> Tensor:
        """``pinned``, copied by the side stream."""
        with self._torch.stream(self._side):
            return pinned.to(self._device, non_blocking=True)

    def take(self, staged: Tensor) -> Tensor:
        """A copy by the stream in use, behind the side stream."""
        self._staged.record(self._side)
        self._staged.wait(self._in_use())
        return staged.clone()

    def release(self) -> Mark:
        """Have the side stream wait for the stream in use."""
        event = self._torch.Event()
        event.record(self._in_use())
        event.wait(self._side)
        passed: Mark = event
        return passed

    def move(self, batch: Any) -> Any:
        """``batch``, copied by the stream in use."""
        return move_data_to_device(batch, self._device)

    def _in_use(self) -> Any:
        return self._torch.current_stream(self._device)


def _is_plain(leaf: Any) -> bool:
    """True for a tensor that is its memory on the CPU and nothing more."""
    return (
        type(leaf) is Tensor
        and leaf.device.type == "cpu"
        and leaf.layout is torch.strided
        and not (leaf.requires_grad or leaf.is_quantized or leaf.is_nested)
    )
