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


def rng_state(include_cuda: bool = True) -> dict[str, Any]:
    """The state of every generator of this process, in types that ``torch.load(weights_only=True)`` reads."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": _plain_state(_numpy_random()),
        "torch": torch.get_rng_state(),
    }
    if include_cuda and torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what ``rng_state`` returned. Devices that are not here now are passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    _set_plain_state(_numpy_random(), state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for index, of_device in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(of_device, index)


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace in the generators outside.

    Args:
        include_cuda: False leaves the generators of GPUs alone; reading them waits for the GPUs.
    """
    state = rng_state(include_cuda)
    try:
        yield
    finally:
        set_rng_state(state)


def seed_all(seed: int) -> None:
    """Seed the generators of this process that run on the CPU; ``seed`` has at most 64 bits."""
    random.seed(seed)
    _numpy_random().seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def drop_cached_gaussian() -> None:
    """Have NumPy forget the second of the two Gaussians that it draws at a time, as going into a Lane does."""
    generators = _numpy_random()
    generators.set_bit_generator(generators.get_bit_generator())


class Lane:
    """Random numbers apart from the process's own, for Python, NumPy and torch on the CPU.

    What is drawn inside ``with lane:`` does not show outside, and goes on where it was left the time before. NumPy's
    cached half of a pair of Gaussians is dropped on the way in and out.

    Args:
        seed: Where the numbers begin.
        anew: They begin at ``seed`` each time, which may be set in between.
    """

    __slots__ = ("_anew", "_inside", "_numpy", "_outside", "seed")

    def __init__(self, seed: int = 0, anew: bool = False) -> None:
        self.seed = seed
        self._anew = anew
        self._numpy: Any = None  # made when it is needed, which takes a while
        self._inside: Any = None
        self._outside: Any = None

    def __enter__(self) -> None:
        generators = _numpy_random()
        if self._numpy is None:
            self._numpy = _unseeded()
        self._outside = random.getstate(), torch.default_generator.get_state(), generators.get_bit_generator()
        generators.set_bit_generator(self._numpy)
        if self._inside is None:
            seed_all(self.seed)
        else:
            random.setstate(self._inside[0])
            torch.default_generator.set_state(self._inside[1])

    def __exit__(self, *_: object) -> None:
        if not self._anew:
            self._inside = random.getstate(), torch.default_generator.get_state()
        python, of_torch, of_numpy = self._outside
        random.setstate(python)
        torch.default_generator.set_state(of_torch)
        _numpy_random().set_bit_generator(of_numpy)

    @property
    def has_drawn(self) -> bool:
        """True when a number was drawn since the lane was begun at its seed."""
        fresh = Lane(self.seed)
        with fresh:
            pass
        python, of_torch = self._inside
        return not (
            fresh._inside[0] == python
            and torch.equal(fresh._inside[1], of_torch)
            and _same(fresh._numpy.state, self._numpy.state)
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the numbers are."""
        if self._inside is None:
            return {"seed": self.seed}
        numpy_state = _plain_state(_numpy_random().RandomState(self._numpy))
        return {"python": self._inside[0], "torch": self._inside[1], "numpy": numpy_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        if "seed" in state:
            self.seed, self._inside = state["seed"], None
            return
        version, words, gauss = state["python"]
        self._inside = (version, tuple(words), gauss), state["torch"]
        if self._numpy is None:
            self._numpy = _unseeded()
        _set_plain_state(_numpy_random().RandomState(self._numpy), state["numpy"])


class _Zeros:
    """What NumPy asks for the first state of a generator (its ISeedSequence), without the work of mixing a seed."""

    def generate_state(self, n_words: int, dtype: Any = None) -> Any:
        return [0] * n_words  # in the place of an array, whose items take NumPy longer to read


def _unseeded() -> Any:
    """A bit generator of NumPy's kind that is to be seeded, or given its state, before anything is drawn."""
    generators = _numpy_random()
    generators.bit_generator.ISeedSequence.register(_Zeros)
    try:
        return generators.MT19937(_Zeros())
    except TypeError:  # of a NumPy that insists on an array
        return generators.MT19937(0)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True for equal states of two of NumPy's bit generators."""
    states = one["state"], other["state"]
    return states[0]["pos"] == states[1]["pos"] and bool((states[0]["key"] == states[1]["key"]).all())


def _plain_state(generators: Any) -> tuple[Any, ...]:
    """NumPy's state in types that ``torch.load(weights_only=True)`` reads."""
    name, keys, position, has_gauss, cached = generators.get_state(legacy=True)
    return str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)


def _set_plain_state(generators: Any, state: tuple[Any, ...]) -> None:
    name, keys, position, has_gauss, cached = state
    generators.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))


def _numpy_random() -> Any:
    import numpy

    return numpy.random
