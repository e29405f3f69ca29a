"""CombinedLoader: several loaders read as one."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from leyden.core.reading import Pass, begin_pass, forget, state_holder
from leyden.utils.errors import MisconfigurationError, nearest
from leyden.utils.seed import isolate_rng
from leyden.utils.tree import tree_leaves, tree_map

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]

_END = object()


class CombinedLoader:
    """Several loaders as one.

    Iterating gives ``(batch, batch_idx, dataloader_idx)``. In the mode ``"sequential"`` these are the batches of one
    loader after the other, each counted from 0. In the other modes ``batch`` has the structure of ``iterables``, with
    a batch of each loader in its loader's place, and ``dataloader_idx`` is 0.

    The order of the batches depends on the loaders and on the random number generators at the beginning of the pass,
    whatever is drawn between batches. Nothing is read ahead.

    Args:
        iterables: A loader, or a list, tuple or mapping of them, nested at will. Inside such a collection, a list of
            ready batches is a loader.
        mode: ``"min_size"`` stops when the first loader ends. ``"max_size"`` goes on until the last one ends, with None
            for those that have ended before. ``"max_size_cycle"`` does too, and begins those anew. ``"sequential"``
            reads one loader after the other.

    Attributes:
        mode: How the loaders are combined.

    Raises:
        ValueError: ``mode`` is unknown, or there is no loader in ``iterables``.
        TypeError: Something in ``iterables`` cannot be iterated over.

    Example:
        >>> loader = CombinedLoader({"a": range(3), "b": [10, 11]}, "max_size_cycle")
        >>> [batch for batch, _, _ in loader]
        [{'a': 0, 'b': 10}, {'a': 1, 'b': 11}, {'a': 2, 'b': 10}]
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in get_args(Mode):
            raise MisconfigurationError(
                f"CombinedLoader(mode={mode!r}) is unknown. Choose one of: {', '.join(get_args(Mode))}."
                f"{nearest(mode, get_args(Mode))}"
            )
        self.mode = mode
        self._iterables = iterables
        self._flattened: list[Any] = []
        self._shape = self._slots(iterables)
        self._limits: list[int | float] | None = None
        self._ends = [0] * len(self._flattened)
        if not self._flattened:
            raise MisconfigurationError(f"CombinedLoader(iterables={iterables!r}) has no loader in it.")
        for name, loader in zip(self.names, self._flattened, strict=True):
            place = f"CombinedLoader, loader {name!r}," if name else "CombinedLoader"
            if isinstance(loader, CombinedLoader):
                raise MisconfigurationError(f"{place} is a CombinedLoader itself. Nest lists and dicts instead.")
            check_loader(loader, place)

    def _slots(self, iterables: Any) -> Any:
        """``iterables`` with each loader's place in ``flattened`` instead of the loader."""

        def slot(loader: Any) -> _Slot:
            self._flattened.append(loader)
            return _Slot(len(self._flattened) - 1)

        # Whoever combines a list of lists means several loaders; deeper down such a list is one, of ready batches.
        if isinstance(iterables, list | tuple) and not all(map(_is_data, iterables)):
            items = [tree_map(slot, item, _Loader) for item in iterables]
            if hasattr(iterables, "_fields"):
                return type(iterables)(*items)
            return tuple(items) if isinstance(iterables, tuple) else items
        return tree_map(slot, iterables, _Loader)

    def _in_place(self, items: Sequence[Any]) -> Any:
        """``items``, one of each loader, in the structure of ``iterables``."""
        return tree_map(items.__getitem__, self._shape, _Slot)

    @property
    def iterables(self) -> Any:
        """The loaders in the structure they were given in."""
        return self._iterables

    @property
    def flattened(self) -> list[Any]:
        """The loaders in order; may be set, to as many others."""
        return list(self._flattened)

    @flattened.setter
    def flattened(self, loaders: Iterable[Any]) -> None:
        loaders = list(loaders)
        if len(loaders) != len(self._flattened):
            raise MisconfigurationError(
                f"CombinedLoader.flattened was set to {len(loaders)} loaders, and there are {len(self._flattened)}."
            )
        self._flattened = loaders
        self._iterables = self._in_place(loaders)

    @property
    def names(self) -> list[str]:
        """Where each loader is in ``iterables``: keys and places, joined by ``/``; empty for a loader by itself."""
        return list(_names(self._shape))

    @property
    def limits(self) -> list[int | float] | None:
        """At most so many batches of each loader, in the mode ``"sequential"``; may be set, also to one number."""
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | list[int | float] | None) -> None:
        if limits is not None and self.mode != "sequential":
            raise MisconfigurationError(
                f"CombinedLoader.limits={limits!r} works in the mode 'sequential', and this one's is {self.mode!r}. "
                "Take fewer batches of all together: itertools.islice, or limit_train_batches of the Trainer."
            )
        if isinstance(limits, int | float):
            limits = [limits] * len(self._flattened)
        if limits is not None and len(limits) != len(self._flattened):
            raise MisconfigurationError(
                f"CombinedLoader.limits={limits!r} has {len(limits)} numbers, and there are "
                f"{len(self._flattened)} loaders."
            )
        self._limits = limits

    @property
    def sampler(self) -> Any:
        """The loaders' samplers in the structure of ``iterables``; None where a loader has none."""
        return self._in_place([getattr(loader, "sampler", None) for loader in self._flattened])

    @property
    def batch_sampler(self) -> Any:
        """The loaders' batch samplers in the structure of ``iterables``; None where a loader has none."""
        return self._in_place([getattr(loader, "batch_sampler", None) for loader in self._flattened])

    def __len__(self) -> int:
        """Batches in a pass.

        In the mode ``"min_size"`` loaders without a length do not count, since they are endless as a rule.

        Raises:
            TypeError: A loader that decides it has no length.
        """
        sizes = [math.inf if (size := size_of(loader)) is None else size for loader in self._flattened]
        if self.mode == "sequential":
            limits = self._limits or [math.inf] * len(sizes)
            total = sum(map(min, sizes, limits))
        else:
            total = min(sizes) if self.mode == "min_size" else max(sizes)
        if total == math.inf:
            unknown = [name or "it" for name, size in zip(self.names, sizes, strict=True) if size == math.inf]
            raise TypeError(f"This CombinedLoader has no length, because of loaders without one: {', '.join(unknown)}.")
        return int(total)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        if self.mode == "sequential":
            return self._one_after_the_other()
        return ((batch, index, 0) for index, batch in enumerate(self.batches()))

    def _one_after_the_other(self) -> Iterator[tuple[Any, int, int]]:
        limits = self._limits or [math.inf] * len(self._flattened)
        for index, (loader, limit) in enumerate(zip(self._flattened, limits, strict=True)):
            for batch_idx, batch in enumerate(islice(loader, None if limit == math.inf else int(limit))):
                yield batch, batch_idx, index

    def batches(self, done: int = 0) -> Iterator[Any]:
        """One pass without the numbers, in every mode but ``"sequential"``.

        Args:
            done: Batches of this pass that are over. Loaders that keep their place have it; those of the others are
                passed over, which needs the random number generators as they were when the pass began.
        """
        assert self.mode != "sequential", "there is no batch of all loaders in this mode"
        with torch.random.fork_rng(devices=[]):  # a number that depends on the generator, and does not change it
            seed = int(torch.randint(2**31, (), device="cpu"))
        # Of the others the ends are counted while they are read.
        before = zip(self._flattened, self._ends, strict=True)
        self._ends = [ends if done and state_holder(loader) is not None else 0 for loader, ends in before]
        names = self.names
        readers = [_Reader(loader, i, names[i], self._ends, seed) for i, loader in enumerate(self._flattened)]
        others = [reader for reader in readers if not reader.keeps_its_place]
        for _ in range(done):
            for reader in others:
                if reader.read(skip=True) is _END and self.mode == "max_size_cycle":
                    reader.read_on(skip=True)
        if self.mode == "min_size":
            return self._until_the_first_ends(readers, done)
        return self._until_the_last_ends(readers) if self.mode == "max_size" else self._in_cycles(readers)

    def _until_the_first_ends(self, readers: list[_Reader], done: int) -> Iterator[Any]:
        sizes = [size_of(loader) if keeps_its_length(loader) else None for loader in self._flattened]
        shortest = min((size for size in sizes if size is not None), default=math.inf)
        for row in count(done):
            if row == shortest:  # read to the end, as a for loop does, those that are there, and no other
                for reader, size in zip(readers, sizes, strict=True):
                    if size == shortest:
                        reader.read()
                return
            batches = []
            for reader in readers:
                if (batch := reader.read()) is _END:
                    return
                batches.append(batch)
            yield self._in_place(batches)

    def _until_the_last_ends(self, readers: list[_Reader]) -> Iterator[Any]:
        while True:
            batches = [None if (batch := reader.read()) is _END else batch for reader in readers]
            if all(reader.has_ended for reader in readers):
                return
            yield self._in_place(batches)

    def _in_cycles(self, readers: list[_Reader]) -> Iterator[Any]:
        while True:
            batches = [reader.read() for reader in readers]
            if all(reader.has_ended for reader in readers):
                return
            for index, reader in enumerate(readers):
                if batches[index] is _END:
                    batches[index] = reader.read_on()
            yield self._in_place(batches)

    def reset(self) -> None:
        """End the worker processes that DataLoaders keep from pass to pass."""
        for loader in self._flattened:
            if isinstance(loader, DataLoader):
                loader._iterator = None
                forget(loader)

    def state_dict(self) -> dict[str, Any]:
        """``loaders``: the state of each loader, None for one that keeps none; ``ends``: how often each has ended."""
        holders = map(state_holder, self._flattened)
        states = [None if holder is None else holder.state_dict() for holder in holders]
        return {"loaders": states, "ends": list(self._ends)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the loaders that keep a state theirs.

        Raises:
            ValueError: There are states, but not of as many loaders.
        """
        states = state.get("loaders", [])
        if len(states) == len(self._flattened):
            self._ends = list(state["ends"])
        elif any(of_loader is not None for of_loader in states):
            raise MisconfigurationError(
                f"The states of {len(states)} combined loaders do not fit this CombinedLoader of "
                f"{len(self._flattened)}. Resume with the loaders that the checkpoint was made with."
            )
        for loader, of_loader in zip(self._flattened, states, strict=False):
            if of_loader is not None and (holder := state_holder(loader)):
                holder.load_state_dict(of_loader)


class _Slot(int):
    """The place of a loader in a structure."""


class _Reader:
    """One loader, read again and again in a pass.

    Attributes:
        keeps_its_place: The loader has a state, which says where it is.
    """

    __slots__ = ("_apart", "_ends", "_index", "_iterator", "_loader", "_name", "_pass", "_seed", "keeps_its_place")

    def __init__(self, loader: Any, index: int, name: str, ends: list[int], seed: int) -> None:
        self._loader = loader
        self._index = index
        self._name = name
        self._ends = ends
        self._seed = seed
        self.keeps_its_place = state_holder(loader) is not None
        self._apart = False
        self._pass: Pass | None = None
        self._iterator: Iterator[Any] | None = None
        if self.keeps_its_place:
            self._begin_apart()
        else:
            self._pass = begin_pass(loader)

    @property
    def has_ended(self) -> bool:
        """The loader has come to its end in this pass, once at least."""
        return self._ends[self._index] > 0

    def read(self, skip: bool = False) -> Any:
        """The next batch, or None where it is only to be passed over; _END from the loader's first end on."""
        return _END if self._ends[self._index] else self._next(skip)

    def read_on(self, skip: bool = False) -> Any:
        """The next batch, the first one anew where the loader has come to its end."""
        batch = self._next(skip)
        if batch is _END and (batch := self._next(skip)) is _END:
            raise MisconfigurationError(
                f"CombinedLoader cannot begin its loader {self._name!r}, a {type(self._loader).__name__}, anew: it "
                "gives no batch then. An iterator, such as a generator, can be read only once: give a DataLoader, or "
                "an object whose __iter__ begins anew. If it is empty, leave it out."
            )
        return batch

    def _next(self, skip: bool) -> Any:
        if self._pass is None:
            self._begin_apart()
        take = self._pass_over if skip else self._take
        if self._apart:  # iterators that are no DataLoader's draw when their first batch is read
            self._apart = False
            with _generators_seeded(self._seed, self._index, self._ends[self._index], 1):
                batch = take()
        else:
            batch = take()
        if batch is _END:
            self._ends[self._index] += 1
            self._pass = self._iterator = None
        return batch

    def _take(self) -> Any:
        if self._iterator is None:
            assert self._pass is not None
            self._iterator = self._pass.rest()
        return next(self._iterator, _END)

    def _pass_over(self) -> Any:
        assert self._pass is not None
        return None if self._pass.skip() else _END

    def _begin_apart(self) -> None:
        """Begin where the random number generators will not be the same when the pass is read again to resume.

        That is while training goes on, and beside or from a state; what is drawn then, depends on how the pass began.
        """
        with _generators_seeded(self._seed, self._index, self._ends[self._index], 0):
            self._pass = begin_pass(self._loader)
        self._apart = True


@contextmanager
def _generators_seeded(*numbers: int) -> Iterator[None]:
    """The process's generators seeded by ``numbers`` inside, and as they were outside."""
    import numpy

    seed = zlib.crc32(repr(numbers).encode())
    with isolate_rng():
        random.seed(seed)
        numpy.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


class _IsLoader(type):
    """Whatever is no collection of loaders."""

    def __instancecheck__(cls, node: object) -> bool:
        if isinstance(node, list | tuple):
            return not any(isinstance(leaf, Iterable | Dataset) and not _is_data(leaf) for leaf in tree_leaves(node))
        return not isinstance(node, Mapping)


class _Loader(metaclass=_IsLoader):
    """Stands for every loader in ``isinstance``."""


def _is_data(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, Tensor | int | float | complex | str | bytes) or hasattr(leaf, "__array__")


def _names(shape: Any, *path: str) -> Iterator[str]:
    if isinstance(shape, _Slot):
        yield "/".join(path)
        return
    for key, item in shape.items() if isinstance(shape, Mapping) else enumerate(shape):
        yield from _names(item, *path, str(key))


def check_loader(loader: Any, where: str) -> None:
    """Refuse what is no loader, though Python may be able to iterate over it."""
    kind = type(loader).__name__
    if isinstance(loader, type):
        raise TypeError(f"{where} gave the class {loader.__name__}. Make an instance: {loader.__name__}(...).")
    by_index = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if by_index or hasattr(loader, "__getitems__"):  # as Hugging Face's datasets have, which are not torch's
        raise TypeError(
            f"{where} gave a {kind}, which is a Dataset: one by one, its samples are no batches. Wrap it: "
            "DataLoader(dataset, batch_size=32), or batch_size=None if its items are batches already."
        )
    if isinstance(loader, str | bytes | torch.Tensor) or hasattr(loader, "__array__"):
        shape = f" of shape {tuple(loader.shape)}" if hasattr(loader, "shape") else f", {loader!r}"
        raise TypeError(
            f"{where} gave a {kind}{shape}, which is no loader. Give a DataLoader, such as "
            "DataLoader(TensorDataset(x, y), batch_size=32)."
        )
    if not isinstance(loader, Iterable):
        raise TypeError(
            f"{where} gave {loader!r}, of type {kind}, which cannot be iterated over. "
            "Give a DataLoader, or any iterable of batches."
        )


def size_of(loader: Any) -> int | None:
    """Batches in ``loader``; None when it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def keeps_its_length(loader: Any) -> bool:
    """True where ``len`` is certain; it is a promise, which iterable datasets often break."""
    if isinstance(loader, CombinedLoader):
        return all(map(keeps_its_length, loader.flattened))
    if isinstance(loader, DataLoader):
        return not isinstance(loader.dataset, IterableDataset)
    return isinstance(loader, Sequence | Mapping)
