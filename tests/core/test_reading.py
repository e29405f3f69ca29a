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
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from leyden.core import gathering, reading
from leyden.core.reading import begin_pass
from leyden.utils.seed import rng_state

X = torch.arange(46.0).reshape(23, 2)
CHANNELS_LAST = torch.arange(23.0 * 2 * 3 * 4 * 5).reshape(23, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)
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


ARRAYS = [X[:, 0].numpy().astype(kind) for kind in ("bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8")]

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
    "a part of a part": lambda: DataLoader(Subset(Subset(DATA, range(5, 20)), (-1, 3, 0, 3)), 3, shuffle=True),
    "a part by a tensor": lambda: DataLoader(Subset(DATA, torch.tensor([4, -23, 22, 7])), 3, shuffle=True),
    "a part by an array": lambda: DataLoader(Subset(DATA, numpy.array([4, -23, 22, 7])), 3, shuffle=True),
    "an empty part": lambda: DataLoader(Subset(DATA, []), 3),
    "a tensor": lambda: DataLoader(X, 4, shuffle=True),
    "numbers of a tensor": lambda: DataLoader(X[:, 0], 4, shuffle=True),
    "an array": lambda: DataLoader(X.numpy(), 4, shuffle=True),
    "every other of an array": lambda: DataLoader(X.numpy()[::2, 1:], 4, shuffle=True),
    "an array backwards": lambda: DataLoader(X.numpy()[::-1], 4, shuffle=True),
    "words of an array": lambda: DataLoader(numpy.array([str(index) for index in range(23)]), 4, shuffle=True),
    "numbers of arrays": lambda: DataLoader(StackDataset(*ARRAYS), 4, shuffle=True),
    "of an array": lambda: DataLoader(TensorDataset(torch.from_numpy(X.numpy())), 4, shuffle=True),
    "side by side": lambda: DataLoader(StackDataset(X, DATA, ConcatDataset([X[:9], X[9:]])), 4, shuffle=True),
    "side by side, by name": lambda: DataLoader(StackDataset(b=X, a=StackDataset(c=DATA)), 4, shuffle=True),
    "three behind another": lambda: DataLoader(
        ConcatDataset([StackDataset(a=X), Subset(StackDataset(a=X), [3, -3]), Subset(StackDataset(a=-X), [2])]),
        4,
        shuffle=True,
    ),
    "behind another in order": lambda: DataLoader(ConcatDataset([X, X[:0], -X]), 4),
    "of two kinds of numbers": lambda: DataLoader(ConcatDataset([X, X.int(), X.double()]), 4, shuffle=True),
    "channels last": lambda: DataLoader(TensorDataset(CHANNELS_LAST), 4, shuffle=True),
    "some by a tensor": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler(torch.tensor([-1, 3, 5, -2, 7]))),
    "some by an array": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler(numpy.array([1, 3, 5, 2, 7]))),
    "by truth": lambda: DataLoader(DATA, 4, sampler=[True] * 4),
    "batches of a weighted sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(WeightedRandomSampler(torch.rand(23), 40, generator=own_generator()), 5, True)
    ),
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


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("samples", [1, 2, 3, 6, 7, 8, 63, 64, 65, 127, 128, 129, 200])
def test_an_order_is_drawn_when_torch_draws_it(samples, size, drop_last):
    data = TensorDataset(torch.arange(samples))
    for sampler in (
        RandomSampler(data, generator=own_generator()),
        RandomSampler(data, num_samples=samples, generator=own_generator()),
        RandomSampler(data, replacement=True, generator=own_generator()),
        WeightedRandomSampler(torch.ones(samples), samples, generator=own_generator()),
        RandomSampler(data),
        SequentialSampler(data),
    ):
        loader = DataLoader(data, size, sampler=sampler, drop_last=drop_last)
        runs = []
        for begin in (iter, lambda loader: begin_pass(loader).rest()):
            seed()
            if own := getattr(sampler, "generator", None):
                own.manual_seed(samples)
            batches, run = begin(loader), []
            while (batch := next(batches, None)) is not None:
                run.append((batch[0].tolist(), torch.get_rng_state().tolist(), own and own.get_state().tolist()))
            runs.append([*run, torch.get_rng_state().tolist(), own and own.get_state().tolist()])
        assert runs[0] == runs[1]


GATHERED = [
    *("in order", "shuffled", "weighted", "with replacement", "some of them", "a list of indices", "a split"),
    *("batches of a sampler", "batches of a weighted sampler", "some by a tensor", "some by an array"),
    *("parts of one", "a part of a part", "a part by a tensor", "a part by an array", "a tensor"),
    *("an array", "every other of an array", "side by side", "side by side, by name", "three behind another"),
    *("behind another in order", "of an array"),
]


@pytest.mark.parametrize("kind", GATHERED)
def test_samples_of_tensors_are_not_read_one_by_one(kind, monkeypatch):
    def refuse(*_):
        raise AssertionError("read one by one")

    loader = LOADERS[kind]()
    monkeypatch.setattr(gathering, "fetcher", lambda _: refuse)
    if kind in ("some of them", "a list of indices", "some by a tensor"):  # they count from the end
        with pytest.raises(AssertionError, match="one by one"):
            list(begin_pass(loader).rest())
    else:
        assert list(begin_pass(loader).rest())


class OnlyTogether(Plain):
    def __getitem__(self, index):
        raise AssertionError("read one by one")

    def __getitems__(self, indices):
        return [X[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("data", [OnlyTogether(), Subset(OnlyTogether(), range(23))], ids=["whole", "part"])
def test_a_dataset_that_reads_samples_together_is_asked_for_them_together(data, workers):
    found = list(begin_pass(DataLoader(data, 10, num_workers=workers)).rest())
    assert same(found, list(X.split(10)))


@pytest.mark.parametrize("kind", [*GATHERED, "channels last"])
def test_rows_that_are_asked_for_ahead_are_the_same(kind, monkeypatch):
    seed()
    expected = list(LOADERS[kind]())
    monkeypatch.setattr(gathering, "_LARGE", 1)
    monkeypatch.setattr(gathering, "_LONG", 1)
    seed()
    assert same(list(begin_pass(LOADERS[kind]()).rest()), expected)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="batches are pinned where there is an accelerator")
def test_samples_are_gathered_where_they_cannot_be_pinned(monkeypatch):
    loader = DataLoader(DATA, 4, pin_memory=True)
    expected = list(loader)
    monkeypatch.setattr(gathering, "fetcher", lambda _: None)
    assert same(list(begin_pass(loader).rest()), expected)


@pytest.mark.parametrize("other", [X[:, :1], TensorDataset(X)])
def test_samples_that_differ_are_refused_in_the_words_of_torch(other):
    loader = DataLoader(ConcatDataset([X, other]), 4)
    with pytest.raises((RuntimeError, TypeError)) as expected:
        list(loader)
    with pytest.raises(type(expected.value)) as found:
        list(begin_pass(loader).rest())
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("sampler", [[0, 23], [-24, 1], [2**40]])
@pytest.mark.parametrize("data", [DATA, X, StackDataset(X), Subset(DATA, range(23))])
def test_an_index_beyond_the_end_is_refused_in_the_words_of_torch(data, sampler):
    loader = DataLoader(data, 2, sampler=sampler)
    with pytest.raises(IndexError) as expected:
        list(loader)
    with pytest.raises(IndexError) as found:
        list(begin_pass(loader).rest())
    assert str(found.value) == str(expected.value)


def test_a_sampler_that_somebody_changed_is_asked_for_its_indices(monkeypatch):
    monkeypatch.setattr(RandomSampler, "__iter__", lambda sampler: iter([3, 1, 2]))
    assert [batch.tolist() for batch in begin_pass(DataLoader(X[:, 0], 2, shuffle=True)).rest()] == [[6, 2], [4]]


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


@pytest.mark.parametrize("data", [DATA, X, X.numpy(), Subset(DATA, range(23)), ConcatDataset([X, X])])
def test_a_batch_is_no_window_on_the_data(data):
    for batch in begin_pass(DataLoader(data, 4)).rest():
        tensor = batch[0] if isinstance(batch, list) else batch
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # nor on the batches beside it
        tensor.zero_()
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
