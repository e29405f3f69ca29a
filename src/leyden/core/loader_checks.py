"""Loaders that work, and probably not as meant: shuffled evaluation, shares of other processes, workers."""

from __future__ import annotations

import inspect
import math
import multiprocessing
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
)

from leyden.core.combined import CombinedLoader
from leyden.core.run import KIND, WORD, Run
from leyden.core.state import Stage
from leyden.utils.errors import warn


def warn_of_training_loader(run: Run) -> None:
    """Look at the training loader that the user made."""
    source = run.sources["train"]
    every = run.options.reload_dataloaders_every_n_epochs
    for loader in _data_loaders(source.loaded):
        _warn_of_shares(run, loader, source.name, evaluates=False)
        _warn_of_doubled_stream(loader, source.name)
        if loader.num_workers and not loader.persistent_workers:
            _warn_of_new_workers(run, loader, source.name)
        elif loader.persistent_workers and every == 1 and source.is_asked:
            warn(
                "LD295",
                f"{source.name}: persistent_workers=True does nothing with reload_dataloaders_every_n_epochs=1, which "
                "makes a new loader, and new workers, for every epoch. Give a larger number, or leave one out.",
            )


def warn_of_evaluation_loaders(run: Run, stage: Stage) -> None:
    """Look at the loaders of ``stage`` that the user made."""
    source, word = run.sources[KIND[stage]], WORD[stage]
    for loader in _data_loaders(source.loaded):
        if not run.options.overfit_batches and isinstance(_sampler(loader), RandomSampler | SubsetRandomSampler):
            effect = (
                "predictions come in another order than the samples"
                if stage is Stage.PREDICT
                else f"{word} does not depend on the order, and a limit takes other samples each time"
            )
            warn("LD286", f"{source.name} shuffles: {effect}. Give shuffle=False.", subject=source.name)
        _warn_of_shares(run, loader, source.name, evaluates=True)
        _warn_of_doubled_stream(loader, source.name)


# More in one collection are taken for ready batches, to look at all of which would take long.
_MOST_LOADERS = 16


def _data_loaders(given: Any) -> Iterator[Any]:
    """The DataLoaders in what a loader hook returned."""
    if isinstance(given, DataLoader):
        yield given
    elif isinstance(given, CombinedLoader):
        yield from _data_loaders(list(given.flattened))
    elif isinstance(given, Mapping | list | tuple):
        for item in islice(given.values() if isinstance(given, Mapping) else given, _MOST_LOADERS):
            if isinstance(item, DataLoader | CombinedLoader | Mapping | list | tuple):
                yield from _data_loaders(item)
            else:
                return  # ready batches


def _sampler(loader: Any) -> Any:
    """What draws the order of the samples."""
    return getattr(loader.batch_sampler, "sampler", None) or loader.sampler


def _warn_of_shares(run: Run, loader: Any, where: str, evaluates: bool) -> None:
    """A DistributedSampler gives every process its share of the samples, and all of them the same number."""
    sampler = _sampler(loader)
    if not isinstance(sampler, DistributedSampler):
        return
    shares, processes = sampler.num_replicas, run.trainer.world_size
    if shares > processes:
        warn(
            "LD287",
            f"{where} has a DistributedSampler(num_replicas={shares}), and {processes} "
            f"process{' runs' if processes == 1 else 'es run'}: only {processes} of {shares} shares of the samples are "
            "read. Leave the sampler out.",
            subject=where,
        )
    elif evaluates and shares > 1 and len(sampler.dataset) % shares:  # type: ignore[arg-type]
        verb = "leaves some out" if sampler.drop_last else "reads some twice"
        warn(
            "LD287",
            f"{where}: {len(sampler.dataset)} samples among {shares} processes do not come out even, so its "  # type: ignore[arg-type]
            f"DistributedSampler {verb}, and the metrics are not exact. For exact ones evaluate with devices=1.",
            subject=where,
        )


def _warn_of_doubled_stream(loader: Any, where: str) -> None:
    """Every worker reads the whole of an iterable dataset, unless that asks which worker it is in."""
    dataset = loader.dataset
    if not isinstance(dataset, IterableDataset) or loader.num_workers < 2 or loader.worker_init_fn is not None:
        return
    if not hasattr(dataset, "__len__"):
        return
    try:
        shares = "worker" in inspect.getsource(type(dataset))
    except (OSError, TypeError):
        return
    if not shares:
        warn(
            "LD288",
            f"{where}: each of its {loader.num_workers} workers reads the whole {type(dataset).__name__}, so every "
            "sample comes as many times and its length is wrong. Let it look at torch.utils.data.get_worker_info().",
            subject=where,
        )


def _warn_of_new_workers(run: Run, loader: Any, where: str) -> None:
    """Started afresh, and not forked, a worker imports everything again."""
    context = loader.multiprocessing_context
    method = context.get_start_method() if context is not None else multiprocessing.get_context().get_start_method()
    epochs = run.options.max_epochs
    if method == "spawn" and (math.inf if epochs in (None, -1) else epochs) > 1:
        warn(
            "LD293",
            f"{where} starts {loader.num_workers} workers anew in every epoch, by {method!r}, which takes seconds. "
            "Give the DataLoader persistent_workers=True.",
            subject=where,
        )
