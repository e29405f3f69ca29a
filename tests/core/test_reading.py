"""Passes over loaders: the batches of torch's own iterators, and the same random numbers left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
import weakref
from itertools import islice

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from leyden.core import reading
from leyden.core.reading import begin_pass
from leyden.utils.seed import rng_state

X = torch.arange(46.0).reshape(23, 2)
DATA = TensorDataset(X, torch.arange(23), X.double()[:, :0], X.T.contiguous().T[:, None])


class Plain(Dataset):
    """Samples of several kinds, read one by one."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"x": X[index], "name": str(index), "pair": (index, float(index))}


class Together(Plain):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def own_generator():
    return torch.Generator().manual_seed(4)


LOADERS = {
    "in order": lambda: DataLoader(DATA, 4),
    "shuffled": lambda: DataLoader(DATA, 4, shuffle=True),
    "without the last": lambda: DataLoader(DATA, 4, shuffle=True, drop_last=True),
    "one by one": lambda: DataLoader(DATA, 1, shuffle=True),
    "larger than the data": lambda: DataLoader(DATA, 100, shuffle=True),
    "nothing but the last": lambda: DataLoader(DATA, 100, drop_last=True),
    "with a generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=own_generator()),
    "with replacement": lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True, num_samples=70)),
    "several times": lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=70)),
    "weighted": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler(torch.rand(23), 40)),
    "some of them": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler([-1, 3, 5, -2, 7])),
    "a list of indices": lambda: DataLoader(DATA, 4, sampler=[1, -3, 5, 7, 9]),
    "batches of a sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, False)),
    "batches of a list": lambda: DataLoader(DATA, batch_sampler=[[1, -2], [3], [5, 5, 5]]),
    "a part": lambda: DataLoader(Subset(DATA, [3, -1, 4, 4, 9]), 2, shuffle=True),
    "a split": lambda: DataLoader(random_split(DATA, [13, 10], own_generator())[0], 3, shuffle=True),
    "one tensor": lambda: DataLoader(TensorDataset(X), 4, shuffle=True),
    "parts of one": lambda: DataLoader(ConcatDataset([DATA, DATA]), 4, shuffle=True),
    "a list": lambda: DataLoader(list(X), 4, shuffle=True),
    "no batches": lambda: DataLoader(DATA, batch_size=None, shuffle=True),
    "samples of several kinds": lambda: DataLoader(Plain(), 4, shuffle=True),
    "read together": lambda: DataLoader(Together(), 4, shuffle=True),
    "in two workers": lambda: DataLoader(Plain(), 4, shuffle=True, num_workers=2),
}


def seed():
    random.seed(3)
    numpy.random.seed(3)
    torch.manual_seed(3)


def same(one, other):
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
        return alike and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", LOADERS)
def test_batches_and_generators_are_those_of_torch(kind, fast):
    seed()
    loader = LOADERS[kind]()
    expected = [list(loader) for _ in range(3)]
    left, own = rng_state(), loader.generator and loader.generator.get_state()
    seed()
    loader = LOADERS[kind]()
    found = [list(begin_pass(loader, fast).rest()) for _ in range(3)]
    assert same(expected, found)
    assert same(left, rng_state())
    assert own is None or torch.equal(own, loader.generator.get_state())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_pass_can_be_taken_up_anywhere(kind, fast):
    seed()
    whole = list(LOADERS[kind]())
    for done in range(len(whole) + 1):
        seed()
        again = begin_pass(LOADERS[kind](), fast)
        assert all(again.skip() for _ in range(done))
        assert same(list(again.rest()), whole[done:])


def test_passing_over_batches_reads_none():
    read = []

    class Notes(Plain):
        def __getitem__(self, index):
            read.append(index)
            return index

    notes = begin_pass(DataLoader(Notes(), 4))
    assert notes.skip() and notes.skip()
    assert next(iter(islice(notes.rest(), 1))).tolist() == [8, 9, 10, 11]
    assert read == [8, 9, 10, 11]


def test_more_batches_than_there_are_cannot_be_passed_over():
    one = begin_pass(DataLoader(DATA, 20))
    assert [one.skip() for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("fast", [True, False])
def test_the_indices_of_the_batch_in_work_are_known(fast):
    one = begin_pass(DataLoader(DATA, 4), fast)
    one.skip()
    batches = one.rest()
    next(batches)
    next(batches)
    assert one.indices_of(2) == [8, 9, 10, 11]
    assert one.indices_of(7) is None


def test_a_batch_is_no_window_on_the_data():
    batch = next(begin_pass(DataLoader(DATA, 4)).rest())
    batch[0].zero_()
    assert X[1].tolist() == [2, 3]


class Dies(Plain):
    def __getitem__(self, index):
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Hangs(Plain):
    def __getitem__(self, index):
        if index == 9:
            time.sleep(60)
        return index


def test_a_dead_worker_is_noticed_soon():
    began = time.monotonic()
    with pytest.raises((RuntimeError, OSError, EOFError)):  # explain_worker_death puts it into words
        list(begin_pass(DataLoader(Dies(), 4, num_workers=1)).rest())
    assert time.monotonic() - began < 20


def test_a_worker_that_hangs_is_waited_for_until_the_limit(monkeypatch):
    monkeypatch.setattr(reading, "WORKER_TIMEOUT", 1.0)
    monkeypatch.setattr(reading, "_LOOKS_EVERY", 0.2)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        list(begin_pass(DataLoader(Hangs(), 4, num_workers=1)).rest())
    assert 1 <= time.monotonic() - began < 15


def test_the_users_own_limit_holds():
    with pytest.raises(RuntimeError, match="timed out after 1"):
        list(begin_pass(DataLoader(Hangs(), 4, num_workers=1, timeout=1)).rest())


@pytest.mark.parametrize("persistent", [True, False])
def test_no_worker_and_no_loader_is_left_when_all_is_let_go(persistent):
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        loader = DataLoader(Plain(), 4, num_workers=2, persistent_workers=persistent)
        gone = weakref.ref(loader)
        one = begin_pass(loader)
        batches = one.rest()
        next(batches)
        assert len(set(multiprocessing.active_children()) - before) == 2
        del batches
        one.close()
        reading.forget(loader)
        del one, loader
        assert gone() is None
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def test_what_is_set_on_a_loader_later_counts():
    loader = DataLoader(Plain(), 4, num_workers=1, collate_fn=len)
    assert list(begin_pass(loader).rest()) == [4, 4, 4, 4, 4, 3]
    loader.collate_fn = max_of
    assert list(begin_pass(loader).rest()) == [4, 8, 12, 16, 20, 23]


def max_of(samples):
    return int(max(samples, key=lambda sample: int(sample["name"]))["name"]) + 1


class Informed(Plain):
    """Knows, in a worker, that it is itself."""

    shift = 0

    def __getitem__(self, index):
        assert torch.utils.data.get_worker_info().dataset.shift == 5
        assert isinstance(torch.utils.data.get_worker_info().dataset, Informed)
        return index + self.shift


def set_shift(worker):
    torch.utils.data.get_worker_info().dataset.shift = 5


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_see_the_users_dataset(context):
    loader = DataLoader(
        Informed(), 23, num_workers=1, worker_init_fn=set_shift, collate_fn=sum, multiprocessing_context=context
    )
    assert list(begin_pass(loader).rest()) == [sum(range(23)) + 23 * 5]
