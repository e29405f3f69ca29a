"""One pass over one loader, whose order and random numbers are the same wherever it is taken up, with any workers.

A DataLoader's pass draws two things from the process's generators when it begins, as torch's own does: the order of its
samples, from the sampler, and a seed. All else is drawn apart:

- a sampler that is not torch's own goes on in a lane of its own behind its first batch
- the samples of batch ``k``, and what collates them, draw from generators seeded by the pass's seed and ``k``, in this
  process or in a worker; nothing is seeded for datasets that are known to draw nothing
- an iterable dataset that is read in this process has a lane of its own

So a pass begins behind ``k`` batches by passing over ``k`` items of the batch sampler, and what is drawn while training
does not depend on the number of workers. Iterables without an order that could be passed over are read again.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    default_convert,
)
from torch.utils.data.distributed import DistributedSampler

from leyden.utils.lazy import LazyModule
from leyden.utils.seed import Lane, drop_cached_gaussian, seed_all

_gathering = LazyModule("leyden.core.gathering")

# Seconds to wait for a batch from worker processes where the user set no limit.
WORKER_TIMEOUT = 300.0
# Seconds after which torch looks whether the workers are alive.
_LOOKS_EVERY = 5.0

# Samplers that draw from the process's generators when their first item is asked for, and not again.
_DRAW_ONCE = {
    *(SequentialSampler, RandomSampler, WeightedRandomSampler, SubsetRandomSampler),
    *(BatchSampler, DistributedSampler),
}
_NONE = object()
# What goes over a list, a tuple or a range: its items are there, and how many are left is known.
READY: set[type] = {type(iter(kind())) for kind in (list, tuple)} | {type(iter(range(0)))}
_ALL_BITS = 2**64 - 1


class Pass:
    """One pass over an iterable of any kind.

    What it draws behind its first batch, it draws in a lane of its own; if it draws nothing for three batches, the
    lane is given up, since it costs some 40 us a batch. Ready batches, in a list or the like, draw nothing.

    Attributes:
        rereads: Passing over a batch takes as long as reading it.
    """

    rereads = True

    def __init__(self, loader: Any) -> None:
        self._iterator: Iterator[Any] = iter(loader)
        self._lane: Lane | None = None
        self._in_lane = 0  # batches that were read there
        ready = isinstance(loader, list | tuple | range)
        self._plain = ready or type(self._iterator) in READY
        self.rereads = not ready

    def skip(self) -> bool:
        """Pass over the next batch; False when there is none."""
        return next(self, _NONE) is not _NONE

    def rest(self) -> Iterator[Any]:
        """The batches that are left; what an order needs of the process's generators has been drawn."""
        return self._iterator if self._plain else self._walk()

    def _walk(self) -> Iterator[Any]:
        for batch in self:
            yield batch
            if self._plain:
                break
        yield from self._iterator

    def indices_of(self, batch: int) -> Any:
        """What the sampler gave for a batch of late, counted from the beginning of the pass; None if not known."""
        return None

    def close(self) -> None:
        """Let go of what is being read; workers that are not kept end."""
        self._iterator = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._plain:
            return next(self._iterator)
        if self._lane is None:
            batch = next(self._iterator)
            self._lane = Lane(_peek())
            return batch
        with self._lane:
            batch = next(self._iterator)
        self._in_lane += 1
        if self._in_lane == 3:
            self._plain = not self._lane.has_drawn
        return batch


class StatefulPass(Pass):
    """One pass over a loader that keeps its place itself, or whose dataset does.

    Attributes:
        lane: Where it draws from; a part of its state.
    """

    def __init__(self, loader: Any) -> None:
        self._iterator = iter(loader)
        self._plain = False
        self._in_lane = 3  # its lane is not given up
        self._lane = self.lane = Lane(_peek())


class StreamPass(Pass):
    """One pass over a DataLoader of an iterable dataset."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._iterator = _open(loader, _draw_seed(loader))
        self._plain = loader.num_workers > 0
        self._in_lane = 0
        self._lane = Lane(_peek())
        if loader.num_workers:
            self._iterator = _patient(self._iterator, loader)


class IndexedPass(Pass):
    """One pass over a DataLoader that finds its samples by index."""

    rereads = False

    def __init__(self, loader: DataLoader[Any], fast: bool) -> None:
        self._order = _Order(loader, fast)
        self._loader: DataLoader[Any] | None = loader
        self._batches: Iterator[Any] | None = None  # made when the first one is read

    def skip(self) -> bool:
        assert self._batches is None, "batches are passed over before any is read"
        return next(self._order, _NONE) is not _NONE

    def rest(self) -> Iterator[Any]:
        self._order.start()
        if self._batches is None:
            assert self._loader is not None
            self._batches = self._opened(self._loader)
        return self._batches

    def indices_of(self, batch: int) -> Any:
        found = next((indices for number, indices in self._order.recent if number == batch), None)
        return found.tolist() if isinstance(found, torch.Tensor) else found

    def close(self) -> None:
        self._batches = iter(())

    def __next__(self) -> Any:
        return next(self.rest())

    def _opened(self, loader: DataLoader[Any]) -> Iterator[Any]:
        order, seeds = self._order, not draws_nothing(loader)
        if order.gather is not None:
            return map(_gathering.gatherer(loader, order.gather), order)
        if loader.num_workers:
            batches = _patient(_open(loader, order.seed, order.with_seeds() if seeds else order), loader)
            return _dropping_gaussians(batches) if seeds else batches
        if loader.pin_memory and torch.accelerator.is_available():
            batches = _open(loader, order.seed, order)
        else:
            batches = map(_gathering.fetcher(loader), order)
        return _seeding(batches, order) if seeds else batches


class _Order:
    """The indices of a pass, batch by batch.

    Attributes:
        seed: The pass's own.
        number: Batches that were asked for.
        gather: Makes a batch of all its indices at once; None where the samples are read one by one.
        recent: Batches asked for of late, by number.
    """

    def __init__(self, loader: DataLoader[Any], fast: bool) -> None:
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self.gather = _gathering.gather_of(loader) if fast else None
        known = self.gather is not None and _gathering.is_known(sampler)
        self._indices: Iterator[Any] = _gathering.known_batches(sampler) if known else iter(sampler)
        self.seed = _draw_seed(loader)
        self.number = 0
        self.recent: deque[tuple[int, Any]] = deque(maxlen=2 + (loader.prefetch_factor or 0) * loader.num_workers)
        self._begun = False
        self._lane: Lane | None = None
        self._draws_once = _draws_once(sampler)

    def start(self) -> None:
        """Have the sampler draw what it draws when its first item is asked for."""
        if not self._begun:
            self._begun = True
            first = next(self._indices, _NONE)
            self._indices = chain((first,) if first is not _NONE else (), self._indices)
            if not self._draws_once:
                self._lane = Lane(_peek())

    def with_seeds(self) -> Iterator[Any]:
        """A seed with each batch, for a worker."""
        for indices in self:
            yield mixed(self.seed, self.number - 1), indices

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._begun:
            self.start()
        if self._lane is None:
            indices = next(self._indices)
        else:
            with self._lane:
                indices = next(self._indices)
        self.recent.append((self.number, indices))
        self.number += 1
        return indices


def begin_pass(loader: Any, fast: bool = True) -> Pass:
    """A pass over ``loader`` from its beginning.

    Args:
        loader: Any iterable of batches.
        fast: Gather the batches of datasets that are made of tensors by index, all samples of one at once.
    """
    if state_holder(loader) is not None:
        return StatefulPass(loader)
    if not is_plain(loader):
        return Pass(loader)
    return StreamPass(loader) if isinstance(loader.dataset, IterableDataset) else IndexedPass(loader, fast)


def state_holder(loader: Any) -> Any:
    """Who keeps the place in ``loader`` in a state of its own: the loader, or the dataset that it reads in order here.

    None for nobody; the state of a dataset that is copied to workers cannot be asked for.
    """
    if is_stateful(loader):
        return loader
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset) and not loader.num_workers:
        return loader.dataset if is_stateful(loader.dataset) else None
    return None


def is_stateful(loader: Any) -> bool:
    """True for a loader that keeps its place in a state of its own."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def is_plain(loader: Any) -> bool:
    """True for a DataLoader that is iterated over as torch does it."""
    kind = type(loader)
    return (
        isinstance(loader, DataLoader)
        and kind.__iter__ is DataLoader.__iter__
        and kind._get_iterator is DataLoader._get_iterator
    )


def draws_nothing(loader: DataLoader[Any]) -> bool:
    """True where reading ``loader``'s samples is known to draw no random number."""
    return loader.collate_fn in (default_collate, default_convert) and _is_data(loader.dataset)


def _is_data(dataset: Any) -> bool:
    kind = type(dataset)
    if kind in (list, tuple, range, torch.Tensor, TensorDataset) or _gathering.is_array(dataset):
        return True
    if kind is Subset:
        return _is_data(dataset.dataset)
    if kind in (ConcatDataset, StackDataset):
        parts = dataset.datasets
        return all(map(_is_data, parts.values() if isinstance(parts, dict) else parts))
    return False


def _draws_once(sampler: Any) -> bool:
    if type(sampler) is BatchSampler and not _draws_once(sampler.sampler):
        return False
    return type(sampler) in _DRAW_ONCE or isinstance(sampler, list | tuple | range)


def _draw_seed(loader: DataLoader[Any]) -> int:
    """A seed, drawn as torch's iterators draw theirs."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())


def _peek() -> int:
    """A number that depends on the process's generator, and does not change it."""
    state = torch.default_generator.get_state()
    number = int(torch.empty((), dtype=torch.int64).random_().item())
    torch.default_generator.set_state(state)
    return number


def mixed(seed: int, number: int) -> int:
    """A seed for batch ``number``: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _ALL_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
    return mixed ^ (mixed >> 31)


# Fetching in this process.


def _seeding(batches: Iterator[Any], order: _Order) -> Iterator[Any]:
    """``batches``, each made with generators seeded by its number."""
    lane, number = Lane(anew=True), order.number
    while True:
        lane.seed = mixed(order.seed, number)
        with lane:
            batch = next(batches, _NONE)
        if batch is _NONE:
            return
        yield batch
        number += 1


# Fetching in workers.


def _patient(batches: Iterator[Any], loader: DataLoader[Any]) -> Iterator[Any]:
    """``batches`` of workers, waited for as long as the user allows, while torch looks after the workers meanwhile."""
    limit = loader.timeout or WORKER_TIMEOUT
    while True:
        until = time.monotonic() + limit
        while True:
            try:
                batch = next(batches)
                break
            except StopIteration:
                return
            except RuntimeError as error:
                if loader.timeout or not str(error).startswith("DataLoader timed out"):
                    raise
                if time.monotonic() >= until:
                    raise RuntimeError(f"DataLoader timed out after {limit:g} seconds") from error
        yield batch


def _dropping_gaussians(batches: Iterator[Any]) -> Iterator[Any]:
    """``batches``, with NumPy's cached Gaussian dropped before each, as where batches are made in this process."""
    while True:
        drop_cached_gaussian()
        batch = next(batches, _NONE)
        if batch is _NONE:
            return
        yield batch


# What torch reads: a DataLoader like the user's, for each of the user's, that is told which samples to fetch.
_copies: weakref.WeakKeyDictionary[DataLoader[Any], tuple[dict[str, Any], DataLoader[Any]]] = (
    weakref.WeakKeyDictionary()
)


def forget(loader: DataLoader[Any]) -> None:
    """End the worker processes that are kept from pass to pass."""
    _copies.pop(loader, None)


def _open(loader: DataLoader[Any], seed: int, orders: Iterator[Any] | None = None) -> Iterator[Any]:
    """torch's iterator over ``loader``, or over what ``orders`` say."""
    options, copy = _copies.get(loader, ({}, None))
    if copy is None or options != _options(loader):
        options = _options(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the user's own loader have been shown
            copy = _copy(loader, options)
        _copies[loader] = options, copy
    copy.generator.manual_seed(seed)
    if orders is None:
        return iter(copy)
    told: Any = copy.sampler if copy.batch_sampler is None else copy.batch_sampler
    told.orders = orders
    iterator = iter(copy)
    told.orders = iter(())  # which the copy must not hold on to
    return iterator


def _options(loader: DataLoader[Any]) -> dict[str, Any]:
    workers = loader.num_workers
    options: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout or (_LOOKS_EVERY if workers else 0),
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
        "in_order": loader.in_order,
    }
    return options | ({"pin_memory_device": loader.pin_memory_device} if loader.pin_memory_device else {})


def _copy(loader: DataLoader[Any], options: dict[str, Any]) -> DataLoader[Any]:
    dataset, generator = loader.dataset, torch.Generator()
    if isinstance(dataset, IterableDataset):
        size: dict[str, Any] = {"batch_size": loader.batch_size}
        if loader.batch_size is not None:
            size["drop_last"] = loader.drop_last
        copy = DataLoader(dataset, generator=generator, **size, **options)
        with suppress(TypeError, NotImplementedError):
            len(copy)  # with that, torch warns of more batches than were claimed
        return copy
    if loader.num_workers and not draws_nothing(loader):
        dataset = Seeded(dataset)  # type: ignore[assignment]
    if loader.batch_sampler is None:
        return DataLoader(dataset, batch_size=None, sampler=_Told(), generator=generator, **options)
    return DataLoader(dataset, batch_sampler=_Told(), generator=generator, **options)


class _Told:
    """A sampler that says what it was told."""

    orders: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.orders  # asked for twice where there are workers, and read once


class Seeded:
    """A dataset in a worker, asked for ``(seed, index)`` or ``(seed, indices)``; in all else it is the user's.

    The generators stay seeded, so that what collates the samples draws from them too.
    """

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_dataset", dataset)

    def __getitem__(self, order: tuple[int, Any]) -> Any:
        seed, index = order
        seed_all(seed)
        return self._dataset[index]

    def __getitems__(self, order: tuple[int, Any]) -> Any:
        seed, indices = order
        seed_all(seed)
        dataset = self._dataset
        if getattr(dataset, "__getitems__", None):
            return dataset.__getitems__(indices)
        return [dataset[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # not there yet, while it is being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __len__(self) -> int:
        return len(self._dataset)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Seeded, (self._dataset,)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._dataset)
