"""Batches made of all their indices at once, where that gives what reading sample by sample gives."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

_Gather = Callable[[torch.Tensor], Any]
# Bytes of a tensor that is more than caches hold, and of rows that are worth asking for ahead.
_LARGE, _LONG = 2**25, 2**11
# NumPy's kinds of numbers that torch has too.
_NUMBERS = {"bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"}
# Batches into which an order is split at a time.
_CHUNK = 64


def fetcher(loader: DataLoader[Any]) -> Callable[[Any], Any]:
    """What makes a batch of the indices that the sampler gave, as torch's fetcher does."""
    dataset: Any = loader.dataset
    collate = loader.collate_fn
    if loader.batch_sampler is None:
        return lambda index: collate(dataset[index])
    if getattr(dataset, "__getitems__", None):
        return lambda indices: collate(dataset.__getitems__(indices))
    return lambda indices: collate([dataset[index] for index in indices])


def gatherer(loader: DataLoader[Any], gather: _Gather) -> Callable[[Any], Any]:
    """What makes a batch of the indices that the sampler gave, by ``gather`` where it can."""
    fetch = fetcher(loader)

    def batch_of(indices: Any) -> Any:
        numbers = indices if type(indices) is torch.Tensor else _numbers(indices)
        if numbers is not None:
            try:
                return gather(numbers)
            except IndexError:  # they count from the end, or go beyond it, which the sample itself says better
                pass
        return fetch(indices.tolist() if type(indices) is torch.Tensor else indices)

    return batch_of


def gather_of(loader: DataLoader[Any]) -> _Gather | None:
    """What makes ``loader``'s batches, all samples of one at once, with the same result; None where that is not known.

    It takes indices from 0 up, and raises IndexError for others.
    """
    plain = type(loader) is DataLoader and not loader.num_workers
    if not plain or type(loader.batch_sampler) is not BatchSampler or loader.collate_fn is not default_collate:
        return None
    if loader.pin_memory and torch.accelerator.is_available():
        return None
    return _gather(loader.dataset)


def _gather(dataset: Any) -> _Gather | None:
    kind = type(dataset)
    if kind is torch.Tensor:
        return _gather_rows(dataset) if _may_be_gathered(dataset) else None
    if kind is TensorDataset:
        return _gather_each(dataset.tensors)
    if kind is StackDataset:
        parts = dataset.datasets
        if not isinstance(parts, dict):
            return _gather_each(parts)
        each = _gather_each(parts.values())
        return None if each is None else lambda indices: dict(zip(parts, each(indices), strict=True))
    if kind is Subset:
        return _gather_part(dataset)
    if kind is ConcatDataset:
        return _gather_one_of(dataset)
    return _gather(torch.from_numpy(dataset)) if is_array(dataset) and _may_be_tensor(dataset) else None


def _may_be_gathered(tensor: torch.Tensor) -> bool:
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.dim() > 0
    # Samples of four and five dimensions may have their channels last, which torch.stack keeps.
    return plain and (tensor.dim() < 5 or tensor[:1].is_contiguous())


def _gather_rows(tensor: torch.Tensor) -> _Gather:
    select = partial(tensor.index_select, 0)
    if tensor.nbytes < _LARGE or tensor.nbytes < _LONG * len(tensor):
        return select
    firsts = tensor.detach()
    while firsts.dim() > 1:
        firsts = firsts.select(1, 0)

    def gather(indices: torch.Tensor) -> torch.Tensor:
        # Rows lie anywhere in memory: with a number of each asked for, all are on their way at once, not one by one,
        # and the batch of 64 rows of 3 KB is there in 28 us instead of 35.
        firsts.index_select(0, indices)
        return select(indices)

    return gather


def is_array(dataset: Any) -> bool:
    return type(dataset).__module__ == "numpy" and type(dataset).__name__ == "ndarray"


def _may_be_tensor(numbers: Any) -> bool:
    """True where torch makes a tensor of the array without a copy or a warning, and of its numbers the same."""
    kind = numbers.dtype
    steps = all(step >= 0 and step % kind.itemsize == 0 for step in numbers.strides)
    return bool(kind.name in _NUMBERS and kind.isnative and steps and numbers.ndim and numbers.flags.writeable)


def _gather_each(datasets: Iterable[Any]) -> _Gather | None:
    """Of datasets side by side: the batch of each, in a list."""
    found = [_gather(dataset) for dataset in datasets]
    gathers = [gather for gather in found if gather is not None]
    return None if len(gathers) < len(found) else lambda indices: [gather(indices) for gather in gathers]


def _gather_part(part: Subset[Any]) -> _Gather | None:
    gather, chosen = _gather(part.dataset), _numbers(part.indices)
    if gather is None or chosen is None:
        return None
    chosen = torch.where(chosen < 0, chosen + len(part.dataset), chosen)  # type: ignore[arg-type]
    return lambda indices: gather(chosen.index_select(0, indices))


def _gather_one_of(row: ConcatDataset[Any]) -> _Gather | None:
    """Of datasets one behind the other, whose samples are alike."""
    found = [_gather(dataset) for dataset in row.datasets]
    gathers = [gather for gather in found if gather is not None]
    none = torch.empty(0, dtype=torch.int64, device="cpu")
    outlines = [_outline(gather(none)) for gather in gathers]
    if len(gathers) < len(found) or any(outline != outlines[0] for outline in outlines):
        return None
    starts = torch.tensor([0, *row.cumulative_sizes[:-1]], device="cpu")

    def joined(indices: torch.Tensor) -> Any:
        places, order = torch.bucketize(indices, starts[1:], right=True).sort(stable=True)
        inside = indices.index_select(0, order) - starts.index_select(0, places)
        shares = torch.split(inside, torch.bincount(places, minlength=len(gathers)).tolist())
        pieces = [gather(share) for gather, share in zip(gathers, shares, strict=True) if len(share)]
        if not pieces:  # of no index, as an outline is taken
            return gathers[0](indices)
        return pieces[0] if len(pieces) == 1 else _rejoined(pieces, order.argsort())

    return joined


def _outline(batch: Any) -> Any:
    """What must be equal in batches for their samples to be alike."""
    if isinstance(batch, dict):
        return {name: _outline(part) for name, part in batch.items()}
    return list(map(_outline, batch)) if isinstance(batch, list) else (batch.dtype, batch.shape[1:])


def _rejoined(pieces: Sequence[Any], order: torch.Tensor) -> Any:
    """One batch of several, its samples in ``order``."""
    first = pieces[0]
    if isinstance(first, dict):
        return {name: _rejoined([piece[name] for piece in pieces], order) for name in first}
    if isinstance(first, list):
        return [_rejoined(parts, order) for parts in zip(*pieces, strict=True)]
    return torch.cat(pieces).index_select(0, order)  # type: ignore[arg-type]


def _numbers(indices: Any) -> torch.Tensor | None:
    """``indices`` as a tensor; None where they are anything but whole numbers in a row."""
    kind = type(indices)
    if kind is torch.Tensor:
        return indices if indices.dtype is torch.int64 and indices.dim() == 1 and indices.is_cpu else None
    if kind not in (list, tuple, range) and not is_array(indices):
        return None
    kinds = set(map(type, indices))
    if kinds == {torch.Tensor} and all(index.dtype is torch.int64 for index in indices):
        return _numbers(torch.stack(list(indices)))
    if bool in kinds or not all(issubclass(kind, Integral) for kind in kinds):
        return None
    if not len(indices):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(array("q", indices), dtype=torch.int64)  # five times as fast as torch.tensor


def is_known(batches: BatchSampler) -> bool:
    """True where ``known_batches`` knows what ``batches`` gives."""
    sampler: Any = batches.sampler
    kind = type(sampler)
    if kind is RandomSampler:
        known = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    else:
        known = kind in (SequentialSampler, WeightedRandomSampler)
    return known and kind.__iter__.__module__ == Sampler.__module__


def known_batches(batches: BatchSampler) -> Iterator[torch.Tensor]:
    """What ``batches`` gives, as tensors; what is drawn for it is drawn when torch draws it."""
    sampler: Any = batches.sampler
    size, again = batches.batch_size, None
    if type(sampler) is SequentialSampler:
        order = torch.arange(len(sampler.data_source), device="cpu")
    elif type(sampler) is WeightedRandomSampler:
        order = torch.multinomial(
            sampler.weights, sampler.num_samples, sampler.replacement, generator=sampler.generator
        ).cpu()
    else:
        again = generator = sampler.generator
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        order = torch.randperm(len(sampler.data_source), generator=generator).cpu()
    whole = len(order) // size * size
    for start in range(0, whole, _CHUNK * size):
        yield from torch.split(order[start : min(start + _CHUNK * size, whole)], size)
    if again is not None:  # a second order is drawn behind the last sample, of which none is taken
        torch.randperm(len(order), generator=again)
    if whole < len(order) and not batches.drop_last:
        yield order[whole:]
