"""Seed everything; capture and restore every random number generator of this process."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from leyden.utils.errors import warn
from leyden.utils.rank import say

SEED_VARIABLE = "LEYDEN_GLOBAL_SEED"


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, NumPy and torch on every device.

    Args:
        seed: 0 to 2**32 - 1. None takes the one given before in this process tree, or else 0 with a warning.
        workers: False means the same as True: torch seeds Python, NumPy and torch in every loader worker from the
            generators seeded here.
        verbose: Say which seed was set.

    Returns:
        The seed.

    Raises:
        ValueError: ``seed`` is not a whole number in the range.
    """
    if seed is None:
        given = os.environ.get(SEED_VARIABLE)
        if given is None:
            warn("LD001", "seed_everything() was called without a seed, so 0 is used. Pass one: seed_everything(0).")
        seed = int(given or 0)
    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} is not a whole number from 0 to 4294967295.")
    seed = int(seed)
    if verbose:
        say(f"Seed set to {seed}")
    os.environ[SEED_VARIABLE] = str(seed)
    random.seed(seed)
    _numpy_random().seed(seed)
    torch.manual_seed(seed)
    return seed


def rng_state() -> dict[str, Any]:
    """The state of every generator of this process, in types that ``torch.load(weights_only=True)`` reads."""
    name, keys, position, has_gauss, cached = _numpy_random().get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what ``rng_state`` returned. Devices that are not here now are passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    _numpy_random().set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for index, of_device in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(of_device, index)


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace in the generators outside."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def _numpy_random() -> Any:
    import numpy

    return numpy.random
