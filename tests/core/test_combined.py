"""CombinedLoader: several loaders read as one, alone and in every method of the Trainer."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import random
from collections import namedtuple
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

import leyden
from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.combined import CombinedLoader
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader

TOGETHER = ("min_size", "max_size", "max_size_cycle")
Pair = namedtuple("Pair", "x y")


class Stream:
    """0, 1, ... up to ``size``, without a length; notes what is read."""

    def __init__(self, size: float, log: list[str] | None = None, name: str = "") -> None:
        self.size, self.log, self.name = size, [] if log is None else log, name

    def __iter__(self):
        self.log.append(f"{self.name} begins")
        index = 0
        while index < self.size:
            self.log.append(f"{self.name} {index}")
            yield index
            index += 1
        self.log.append(f"{self.name} ends")


class Sized(Stream, Sequence):
    """The same with a length, which is known to be true since it is a sequence's."""

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return range(self.size)[index]


def batches(*args: Any) -> list[Any]:
    return [batch for batch, _, _ in CombinedLoader(*args)]


# What it gives.


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [({"a": 0, "b": 10}, 0, 0), ({"a": 1, "b": 11}, 1, 0)]),
        ("max_size", [({"a": 0, "b": 10}, 0, 0), ({"a": 1, "b": 11}, 1, 0), ({"a": 2, "b": None}, 2, 0)]),
        ("max_size_cycle", [({"a": 0, "b": 10}, 0, 0), ({"a": 1, "b": 11}, 1, 0), ({"a": 2, "b": 10}, 2, 0)]),
        ("sequential", [(0, 0, 0), (1, 1, 0), (2, 2, 0), (10, 0, 1), (11, 1, 1)]),
    ],
)
def test_every_mode_gives_the_batch_its_index_and_the_index_of_the_loader(mode, expected):
    loader = CombinedLoader({"a": range(3), "b": [10, 11]}, mode)
    assert len(loader) == len(expected)
    assert list(loader) == expected
    assert list(loader) == expected  # it begins anew every time


@pytest.mark.parametrize("sizes", [(3, 2), (2, 3), (3, 3), (1, 5)])
@pytest.mark.parametrize("mode", [*TOGETHER, "sequential"])
def test_loaders_without_length_give_the_same_as_those_with_one(mode, sizes):
    assert list(CombinedLoader(list(map(Stream, sizes)), mode)) == list(CombinedLoader(list(map(range, sizes)), mode))


@pytest.mark.parametrize(
    ("iterables", "first"),
    [
        ([range(2), (range(2),)], [0, (0,)]),
        ({"a": [range(2)], "b": {"c": range(2)}}, {"a": [0], "b": {"c": 0}}),
        (Pair(range(2), range(5, 7)), Pair(0, 5)),
        ((range(2), range(5, 7)), (0, 5)),
        (range(2), 0),
    ],
)
def test_a_batch_has_the_structure_of_the_loaders(iterables, first):
    found = batches(iterables)
    assert len(found) == 2
    assert found[0] == first
    assert type(found[0]) is type(first)


@pytest.mark.parametrize(
    ("iterables", "loaders"),
    [
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ({"a": [1, 2], "b": range(2)}, [[1, 2], range(2)]),
        ({"a": [(1, 2), (3, 4)]}, [[(1, 2), (3, 4)]]),
        ([1, 2], [[1, 2]]),
        ({"a": {"b": [range(1), range(2)]}}, [range(1), range(2)]),
    ],
)
def test_a_list_of_ready_batches_in_a_collection_is_a_loader(iterables, loaders):
    assert CombinedLoader(iterables).flattened == loaders


def test_ready_batches_of_tensors_are_told_from_loaders():
    batch = (torch.zeros(2), torch.ones(2))
    assert batches({"a": [batch, batch], "b": [batch]}, "max_size")[1] == {"a": batch, "b": None}


def test_loaders_have_the_names_of_their_places():
    assert CombinedLoader({"a": range(1), "b": [range(1), {"c": range(1)}]}).names == ["a", "b/0", "b/1/c"]
    assert CombinedLoader([range(1), range(1)]).names == ["0", "1"]
    assert CombinedLoader(range(1)).names == [""]


# Its length.


@pytest.mark.parametrize(
    ("mode", "length"), [("min_size", 3), ("max_size", None), ("max_size_cycle", None), ("sequential", None)]
)
def test_a_loader_without_length_leaves_only_the_shortest_known(mode, length):
    loader = CombinedLoader({"a": range(3), "b": Stream(9), "c": range(4)}, mode)
    if length is not None:
        assert len(loader) == length
        return
    with pytest.raises(TypeError, match="no length, because of loaders without one: b"):
        len(loader)


def test_without_any_length_there_is_none():
    with pytest.raises(TypeError, match="loaders without one: 0, 1"):
        len(CombinedLoader([Stream(3), Stream(4)]))


# What is read, and when.


@pytest.mark.parametrize("kind", [Stream, Sized])
def test_the_cycle_reads_nothing_that_it_does_not_give(kind):
    log: list[str] = []
    found = batches([kind(1, log, "a"), kind(3, log, "b")], "max_size_cycle")
    assert found == [[0, 0], [0, 1], [0, 2]]
    assert [event for event in log if event[-1].isdigit()] == ["a 0", "b 0", "b 1", "a 0", "b 2", "a 0"]
    assert log[-1] == "b ends"


def test_loaders_of_one_length_are_never_begun_anew():
    log: list[str] = []
    batches([Stream(2, log, "a"), Stream(2, log, "b")], "max_size_cycle")
    assert [event for event in log if "begins" in event] == ["a begins", "b begins"]


@pytest.mark.parametrize("endless", [Stream(float("inf")), Stream(3)])
def test_the_shortest_loader_is_read_to_its_end_and_the_others_no_further(endless):
    log: list[str] = []
    endless.log, endless.name = log, "stream"
    assert len(batches([endless, Sized(2, log, "a")])) == 2
    assert log[-1] == "a ends"
    assert "stream 2" not in log


def test_iterators_are_made_in_order_before_the_first_batch_is_asked_for():
    log: list[str] = []

    class Notes(Stream):
        def __iter__(self):
            log.append(self.name)
            return iter(range(2))

    iter(CombinedLoader({"z": Notes(2, name="z"), "a": [Notes(2, name="a0"), Notes(2, name="a1")]}))
    assert log == ["z", "a0", "a1"]


@pytest.mark.parametrize("first", [True, False])
def test_a_generator_cannot_be_begun_anew(first):
    loaders = {"a": range(3), "b": (i for i in range(1))}
    with pytest.raises(MisconfigurationError, match=r"its loader 'b', a generator, anew.*read only once"):
        batches(loaders if first else dict(reversed(loaders.items())), "max_size_cycle")


# The random order.


def shuffled(samples: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(samples)), batch_size=2, shuffle=True, **options)


class PythonSampler:
    """Shuffles by Python's and numpy's generators."""

    def __len__(self):
        return 6

    def __iter__(self):
        order = list(range(6))
        random.shuffle(order)
        np.random.shuffle(order)
        return iter(order)


def various() -> dict[str, Any]:
    return {
        "a": shuffled(4),
        "b": [shuffled(10), shuffled(6, generator=torch.Generator().manual_seed(7))],
        "c": DataLoader(TensorDataset(torch.arange(6)), sampler=PythonSampler(), batch_size=2),
    }


def values(batch: Any) -> Any:
    return leyden.utils.tree.tree_map(lambda tensor: tensor.tolist(), batch)


def seeded() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("mode", TOGETHER)
def test_what_is_drawn_between_batches_does_not_change_their_order(mode):
    def one_pass(draws: bool) -> list[Any]:
        seeded()
        found = []
        for batch, _, _ in CombinedLoader(various(), mode):
            found.append(values(batch))
            if draws:
                torch.rand(3), random.random(), np.random.rand()
        return found

    found = one_pass(draws=True)
    assert found == one_pass(draws=False)
    assert len(found) == (2 if mode == "min_size" else 5)


def test_every_round_of_a_cycle_has_its_own_order():
    seeded()
    loaders = {"a": shuffled(20), "b": range(40)}
    found = [batch["a"][0].tolist() for _ in range(2) for batch in batches(loaders, "max_size_cycle")]
    rounds = [tuple(chain(*found[i : i + 10])) for i in range(0, 80, 10)]
    assert all(sorted(order) == list(range(20)) for order in rounds)
    assert len(set(rounds)) == 8


@pytest.mark.parametrize("mode", TOGETHER)
def test_a_pass_leaves_the_generators_as_the_loaders_alone_do(mode):
    def loaders() -> list[Any]:
        return [shuffled(10), shuffled(4)]

    seeded()
    batches(loaders(), mode)
    ours = torch.rand(1)
    seeded()
    long, short = map(iter, loaders())
    for _ in range(2):
        next(long), next(short)
    assert torch.equal(ours, torch.rand(1))


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("mode", TOGETHER)
def test_a_pass_can_be_taken_up_behind_any_batch(mode, done):
    seeded()
    whole = [values(batch) for batch in CombinedLoader(various(), mode).batches()]
    seeded()
    assert [values(batch) for batch in CombinedLoader(various(), mode).batches(done)] == whole[done:]


# Its parts.


def test_the_loaders_may_be_replaced_by_as_many_others():
    loader = CombinedLoader({"a": range(2), "b": [range(3)]})
    assert loader.iterables == {"a": range(2), "b": [range(3)]}
    loader.flattened = [range(5), range(6)]
    assert loader.iterables == {"a": range(5), "b": [range(6)]}
    assert len(loader) == len(list(loader)) == 5
    with pytest.raises(ValueError, match="set to 1 loaders, and there are 2"):
        loader.flattened = [range(5)]


@pytest.mark.parametrize(
    ("limits", "kept", "expected"),
    [
        ([2, 1], [2, 1], [(0, 0, 0), (1, 1, 0), (10, 0, 1)]),
        (1, [1, 1], [(0, 0, 0), (10, 0, 1)]),
        ([float("inf"), 0], [float("inf"), 0], [(0, 0, 0), (1, 1, 0), (2, 2, 0)]),
        (None, None, [(0, 0, 0), (1, 1, 0), (2, 2, 0), (10, 0, 1), (11, 1, 1)]),
    ],
)
def test_limits_hold_loader_by_loader(limits, kept, expected):
    loader = CombinedLoader([range(3), [10, 11]], "sequential")
    loader.limits = limits
    assert loader.limits == kept
    assert list(loader) == expected
    assert len(loader) == len(expected)


def test_limits_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="works in the mode 'sequential', and this one's is 'max_size'"):
        CombinedLoader([range(3)], "max_size").limits = [1]
    with pytest.raises(ValueError, match="has 1 numbers, and there are 2 loaders"):
        CombinedLoader([range(3), range(2)], "sequential").limits = [1]


def test_samplers_come_in_the_structure_of_the_loaders():
    loader = CombinedLoader({"a": shuffled(4), "b": [DataLoader([1.0]), range(2)]})
    assert isinstance(loader.sampler["a"], RandomSampler)
    assert isinstance(loader.sampler["b"][0], SequentialSampler)
    assert isinstance(loader.batch_sampler["a"], BatchSampler)
    assert loader.sampler["b"][1] is loader.batch_sampler["b"][1] is None


def test_it_can_be_copied_and_sent_to_another_process_in_mid_pass():
    loader = CombinedLoader({"a": range(3), "b": [1, 2]}, "max_size")
    iterator = iter(loader)
    next(iterator)
    expected = list(loader)
    assert list(pickle.loads(pickle.dumps(loader))) == list(copy.deepcopy(loader)) == expected


def test_reset_ends_the_workers_that_are_kept_from_pass_to_pass():
    member = DataLoader(torch.arange(2), num_workers=1, persistent_workers=True)
    loader = CombinedLoader([member])
    before = set(multiprocessing.active_children())
    assert len(list(loader)) == 2
    (worker,) = set(multiprocessing.active_children()) - before
    loader.reset()
    worker.join(timeout=10)
    assert not worker.is_alive()
    assert len(list(loader)) == 2
    loader.reset()


# What is refused.


@pytest.mark.parametrize(
    ("mode", "hint"), [("min_sizes", "Did you mean 'min_size'?"), ("MAX_SIZE", "Did you mean 'max_size'?"), (None, "")]
)
def test_an_unknown_mode_is_refused_with_the_nearest(mode, hint):
    with pytest.raises(ValueError, match="Choose one of: min_size, max_size_cycle, max_size, sequential") as raised:
        CombinedLoader([range(2)], mode)
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    ("iterables", "error", "message"),
    [
        ({"a": range(2), "b": None}, TypeError, "loader 'b', gave None, of type NoneType, which cannot be iterated"),
        ([range(2), 3], TypeError, "loader '1', gave 3"),
        ({"a": {"b": torch.zeros(3, 2)}}, TypeError, r"loader 'a/b', gave a Tensor of shape \(3, 2\)"),
        ([tiny_data(2), tiny_data(2)], TypeError, "loader '0', gave a TensorDataset, which is a Dataset"),
        (tiny_data(2), TypeError, "CombinedLoader gave a TensorDataset, which is a Dataset"),
        ({}, ValueError, "has no loader in it"),
        ([CombinedLoader(range(2))], ValueError, "loader '0', is a CombinedLoader itself"),
    ],
)
def test_what_is_no_loader_is_refused_by_name(iterables, error, message):
    with pytest.raises(error, match=message):
        CombinedLoader(iterables)


# Loaders that keep their place.


class Keeps:
    """0 to ``size - 1``, from where its state says; counts what is read."""

    def __init__(self, size: int) -> None:
        self.size, self.next, self.passes, self.reads = size, 0, 0, 0

    def __iter__(self):
        while self.next < self.size:
            self.next += 1
            self.reads += 1
            yield 100 * self.passes + self.next - 1
        self.next, self.passes = 0, self.passes + 1

    def state_dict(self):
        return {"next": self.next, "passes": self.passes}

    def load_state_dict(self, state):
        self.next, self.passes = state["next"], state["passes"]


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("mode", TOGETHER)
def test_loaders_with_a_state_go_on_where_they_were_without_being_read(mode, done):
    def loaders() -> dict[str, Any]:
        return {"keeps": Keeps(2), "shuffled": shuffled(6), "long": Keeps(7)}

    seeded()
    loader = CombinedLoader(loaders(), mode)
    whole, states = [], [copy.deepcopy(loader.state_dict())]
    for batch in loader.batches():
        whole.append(values(batch))
        states.append(copy.deepcopy(loader.state_dict()))
        torch.rand(1)
    if done >= len(whole):
        return
    again = CombinedLoader(loaders(), mode)
    again.load_state_dict(states[done])
    seeded()
    rest = again.batches(done)
    assert sum(keeps.reads for keeps in (again.flattened[0], again.flattened[2])) == 0
    assert [values(batch) for batch in rest] == whole[done:]


def test_the_states_come_in_order_and_none_for_loaders_without():
    loader = CombinedLoader([range(2), [Keeps(2)]], "max_size")
    assert loader.state_dict() == {"loaders": [None, {"next": 0, "passes": 0}], "ends": [0, 0]}
    list(loader)
    assert loader.state_dict() == {"loaders": [None, {"next": 0, "passes": 1}], "ends": [1, 1]}


def test_the_states_of_other_loaders_are_refused():
    state = CombinedLoader([range(2), Keeps(2)]).state_dict()
    with pytest.raises(ValueError, match="states of 2 combined loaders do not fit this CombinedLoader of 1"):
        CombinedLoader([Keeps(2)]).load_state_dict(state)
    CombinedLoader([Keeps(2)]).load_state_dict(CombinedLoader([range(2), range(2)]).state_dict())


# Training.


class Both(TinyModel):
    """Trains on every batch of a dict, a list or a tuple of them; its result depends on torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net.append(nn.Dropout(0.2))
        self.seen: list[Any] = []

    def training_step(self, batch, batch_idx):
        batch = batch if isinstance(batch, dict) else dict(enumerate(batch))
        parts = {key: part for key, part in batch.items() if part is not None}
        self.seen.append({key: round(part[0].sum().item(), 3) for key, part in parts.items()})
        return sum(self.loss(part) for part in parts.values())


def trainer_of(*callbacks: Callback, **options: Any) -> leyden.Trainer:
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": saves,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "callbacks": list(callbacks),
    }
    return leyden.Trainer(**defaults | options)


def fitted(train: Any, *callbacks: Callback, seed: int = 3, path: str | None = None, **options: Any) -> Any:
    """Both, trained; its Trainer is ``model.trainer``."""
    torch.manual_seed(seed)
    model = Both()
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(model, train, ckpt_path=path)
    model.fit = trainer
    return model


def mixed(size: int = 16, **options: Any) -> DataLoader[Any]:
    """Shuffled batches of 8 of ``size`` samples, which differ from those of other sizes."""
    return DataLoader(tiny_data(size, seed=size), batch_size=8, shuffle=True, **options)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_collection_of_training_loaders_is_read_to_the_end_of_the_longest(kind):
    loaders = {0: tiny_loader(2), 1: tiny_loader(5, seed=1)}
    model = fitted(loaders if kind is dict else kind(loaders.values()), max_epochs=1)
    assert model.fit.num_training_batches == model.fit.global_step == 5
    short, long = ([round(x.sum().item(), 3) for x, _ in loader] for loader in loaders.values())
    assert [seen[0] for seen in model.seen] == [short[i % 2] for i in range(5)]
    assert [seen[1] for seen in model.seen] == long


def test_training_loaders_may_be_nested():
    seen = []

    class Nested(TinyModel):
        def training_step(self, batch, batch_idx):
            seen.append((list(batch), [len(part) for part in batch["b"]]))
            return self.loss(batch["a"])

    trainer_of(max_epochs=1).fit(Nested(), {"a": tiny_loader(1), "b": [tiny_loader(1), tiny_loader(1)]})
    assert seen == [(["a", "b"], [2, 2])]


@pytest.mark.parametrize(
    ("mode", "steps", "last"), [("min_size", 4, 2), ("max_size", 10, 1), ("max_size_cycle", 10, 2)]
)
def test_a_combined_loader_trains_in_its_mode(mode, steps, last):
    model = fitted(CombinedLoader([tiny_loader(5), tiny_loader(2)], mode))
    assert model.fit.global_step == steps
    assert len(model.seen[-1]) == last


def test_training_gives_the_same_bits_as_a_loop_over_both_loaders_by_hand():
    def loaders() -> dict[str, Any]:
        return {"a": mixed(32), "b": mixed(24 + 8)}

    model = fitted(loaders())
    torch.manual_seed(3)
    by_hand, data = Both(), loaders()
    optimizer = by_hand.configure_optimizers()
    for _ in range(2):
        for a, b in zip(data["a"], data["b"], strict=True):
            optimizer.zero_grad()
            by_hand.training_step({"a": a, "b": b}, 0).backward()
            optimizer.step()
    assert model.seen == by_hand.seen
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), by_hand.parameters(), strict=True))


class Saves(Callback):
    """Asks for saved.ckpt at one global_step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.request_checkpoint("saved.ckpt")


class Keeping(DataLoader):
    """A DataLoader that remembers its place."""

    done, skip = 0, 0

    def __iter__(self):
        skip, self.skip = self.skip, 0
        return self.rest(super().__iter__(), skip)

    def rest(self, iterator, skip):
        for index, batch in enumerate(iterator):
            if index >= skip:
                self.done = index + 1
                yield batch
        self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.skip = state["done"]


def endless() -> DataLoader[Any]:
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield from tiny_data(16, seed=2)

    return DataLoader(Endless(), batch_size=8)


RESUMED = {
    "a dict of two shuffled loaders": lambda: {"a": mixed(16), "b": mixed(56)},
    "a list, the longest first": lambda: [mixed(56), mixed(24)],
    "with generators of their own": lambda: {
        "a": mixed(16, generator=torch.Generator().manual_seed(1)),
        "b": mixed(56, generator=torch.Generator().manual_seed(2)),
    },
    "with None at the end": lambda: CombinedLoader({"a": mixed(24), "b": mixed(56)}, "max_size"),
    "beside an endless one": lambda: CombinedLoader({"a": endless(), "b": mixed(56)}, "min_size"),
    "beside one that keeps its place": lambda: {
        "a": Keeping(tiny_data(24), batch_size=8, shuffle=True),
        "b": mixed(56),
        "c": mixed(16),
    },
    "that keep their places": lambda: [
        Keeping(tiny_data(24), batch_size=8, shuffle=True),
        Keeping(tiny_data(56), batch_size=8),
    ],
}


@pytest.mark.parametrize("step", [1, 4, 7, 9, 12])
@pytest.mark.parametrize("case", RESUMED)
def test_training_resumed_in_mid_epoch_gives_the_same_bits(case, step):
    whole = fitted(RESUMED[case](), Saves(step))
    assert whole.fit.global_step == 14
    resumed = fitted(RESUMED[case](), seed=99, path="saved.ckpt")
    assert resumed.seen == whole.seen[step:]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_stop_in_mid_epoch_and_a_second_fit_give_the_same_bits():
    whole = fitted({"a": mixed(16), "b": mixed(56)})
    loaders = {"a": mixed(16), "b": mixed(56)}
    model = fitted(loaders, max_steps=5)
    model.fit.save_checkpoint("stopped.ckpt")
    rest = fitted(loaders, seed=98, path="stopped.ckpt")
    assert model.seen + rest.seen == whole.seen
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), rest.parameters(), strict=True))


def test_an_endless_loader_beside_one_with_a_length_has_known_epochs():
    class Ends(Callback):
        ends: list[tuple[int, bool]] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.ends.append((batch_idx, trainer.is_last_batch))

    loader = CombinedLoader({"labeled": tiny_loader(3), "unlabeled": endless()})
    model = fitted(loader, Ends(), accumulate_grad_batches=2)
    assert model.fit.num_training_batches == 3
    assert Ends.ends == [(0, False), (1, False), (2, True)] * 2
    assert model.fit.global_step == 4


def test_an_epoch_ends_with_its_loaders_where_one_has_fewer_batches_than_it_claims():
    class Claims(IterableDataset):
        def __len__(self):
            return 80

        def __iter__(self):
            return iter(tiny_data(24))

    class Schedules(Both):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    model = Schedules()
    trainer = trainer_of()
    trainer.fit(model, {"a": DataLoader(Claims(), batch_size=8), "b": mixed(16)})
    assert trainer.global_step == 6
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_the_epoch_reaches_the_samplers_of_every_loader():
    class Ordered(SequentialSampler):
        epochs: list[int]

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    def sampled() -> DataLoader[Any]:
        sampler = Ordered(tiny_data(8))
        sampler.epochs = []
        return DataLoader(tiny_data(8), batch_size=8, sampler=sampler)

    one, other, nested = sampled(), sampled(), sampled()
    fitted([one, other])
    fitted(CombinedLoader({"a": nested}))
    assert all(set(loader.sampler.epochs) == {0, 1} for loader in (one, other, nested))


def test_overfit_batches_reads_every_loader_in_order():
    data = tiny_data(16, seed=32)
    given = {"a": DataLoader(data, batch_size=8, shuffle=True), "b": DataLoader(data, batch_size=8)}
    with pytest.warns(LeydenWarning, match=r"fit\(train_dataloaders=...\), loader 'a', shuffles.*LD030"):
        model = fitted(given, overfit_batches=2)
    in_order = [round(x.sum().item(), 3) for x, _ in given["b"]]
    assert model.seen == [{"a": value, "b": value} for value in in_order] * 2
    assert isinstance(given["a"].sampler, RandomSampler)


def test_the_number_of_steps_can_be_estimated():
    class Asks(Both):
        def configure_optimizers(self):
            self.steps = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model = Asks()
    trainer_of().fit(model, {"a": tiny_loader(2), "b": tiny_loader(5)})
    assert model.steps == 10


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (lambda: CombinedLoader([tiny_loader(1)], "sequential"), ValueError, "Use 'max_size_cycle', 'max_size' or"),
        (lambda: {"a": tiny_loader(1), "b": tiny_data(8)}, TypeError, "loader 'b', gave a TensorDataset"),
        (lambda: {"a": tiny_loader(1), "b": None}, TypeError, "loader 'b', gave None"),
        (lambda: {"a": tiny_loader(1), "b": []}, ValueError, "loader 'b', is empty"),
        (lambda: {"a": tiny_loader(1), "b": iter_of(2)}, TypeError, "loader 'b', is a generator"),
        (lambda: [tiny_loader(1), CombinedLoader(tiny_loader(1))], ValueError, "is a CombinedLoader itself"),
        (lambda: {}, ValueError, "has no loader in it"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(loader, error, message):
    with pytest.raises(error, match=rf"fit\(train_dataloaders=\.\.\.\).*{message}"):
        fitted(loader())


def iter_of(count: int) -> Any:
    return (batch for batch in tiny_loader(count))


# Evaluation.


class Numbered(ValidatedModel):
    """Logs the mean of the batch's inputs as ``x``, and the loader's index apart from its name."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("x", batch[0].float().mean())
        self.log(f"loader{dataloader_idx}", 1.0, add_dataloader_idx=False)

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[0][0, 0].item()


def filled(value: float, batches: int = 1) -> DataLoader[Any]:
    """Batches of ``tiny_data``'s shape, filled with ``value``."""
    return DataLoader([(torch.full((2, 32), value), torch.zeros(2).long())] * batches, batch_size=None)


@pytest.mark.parametrize("method", ["validate", "test"])
@pytest.mark.parametrize("combine", [lambda loaders: loaders, lambda loaders: CombinedLoader(loaders, "sequential")])
def test_a_dict_of_loaders_names_the_metrics_by_its_keys(method, combine):
    trainer = trainer_of()
    loaders = combine({"clean": filled(1.0), "noisy": {"a": filled(2.0), "b": filled(3.0)}})
    assert getattr(trainer, method)(Numbered(), loaders, verbose=False) == [
        {"x/clean": 1.0, "loader0": 1.0},
        {"x/noisy/a": 2.0, "loader1": 1.0},
        {"x/noisy/b": 3.0, "loader2": 1.0},
    ]
    assert set(trainer.callback_metrics) == {"x/clean", "x/noisy/a", "x/noisy/b", "loader0", "loader1", "loader2"}


def test_a_sequential_list_names_the_metrics_by_number():
    found = trainer_of().validate(Numbered(), CombinedLoader([filled(1.0), filled(2.0)], "sequential"), verbose=False)
    assert [next(iter(metrics)) for metrics in found] == ["x/dataloader_idx_0", "x/dataloader_idx_1"]


@pytest.mark.parametrize("loaders", [{"only": filled(1.0)}, CombinedLoader({"only": filled(1.0)}, "sequential")])
def test_one_loader_adds_nothing_to_the_names(loaders):
    assert trainer_of().test(Numbered(), loaders, verbose=False) == [{"x": 1.0, "loader0": 1.0}]


def test_loaders_nested_in_a_list_are_read_one_after_the_other():
    found = trainer_of().test(Numbered(), [{"a": filled(1.0)}, [filled(2.0), filled(3.0)]], verbose=False)
    assert [metrics[f"x/dataloader_idx_{index}"] for index, metrics in enumerate(found)] == [1.0, 2.0, 3.0]


def test_a_list_of_ready_dict_batches_is_one_loader():
    class Reads(ValidatedModel):
        def test_step(self, batch, batch_idx):
            self.log("x", batch["x"].mean())

    found = trainer_of().test(Reads(), [{"x": torch.ones(2)}, {"x": torch.zeros(2)}], verbose=False)
    assert found == [{"x": 0.5}]


@pytest.mark.parametrize(("mode", "calls"), [("min_size", 2), ("max_size_cycle", 3)])
def test_loaders_combined_in_another_mode_are_evaluated_as_one(mode, calls):
    sums = []

    class Sums(ValidatedModel):
        def validation_step(self, batch, batch_idx):
            sums.append(sum(part[0].mean().item() for part in batch.values()))
            self.log("x", sums[-1], batch_size=2)

    loader = CombinedLoader({"a": filled(1.0, 2), "b": filled(10.0, 3)}, mode)
    assert trainer_of().validate(Sums(), loader, verbose=False) == [{"x": 11.0}]
    assert sums == [11.0] * calls


def test_limits_and_the_sanity_check_hold_for_loaders_in_a_dict():
    counts = []

    class Counts(Callback):
        def on_validation_end(self, trainer, pl_module):
            counts.append(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    trainer = trainer_of(Counts(), max_epochs=1, num_sanity_val_steps=1, limit_val_batches=2)
    trainer.fit(Numbered(), tiny_loader(1), {"a": filled(1.0, 1), "b": filled(2.0, 3)})
    assert counts == [[1, 1], [1, 2]]
    assert {"x/a", "x/b"} <= set(trainer.callback_metrics)


def test_predictions_of_a_dict_of_loaders_are_a_list_for_each():
    assert trainer_of().predict(Numbered(), {"a": filled(1.0), "b": filled(2.0, 2)}) == [[1.0], [2.0, 2.0]]
    sequential = CombinedLoader([filled(1.0), filled(2.0, 2)], "sequential")
    assert trainer_of().predict(Numbered(), sequential) == [[1.0], [2.0, 2.0]]


class ByLoader(ValidatedModel):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self.loss(batch))


KEYED = {"clean": tiny_loader(1), "noisy": tiny_loader(1, seed=1)}


def test_a_checkpoint_may_be_ranked_by_one_loader_of_a_dict():
    best = ModelCheckpoint(monitor="val_loss/noisy", filename="{val_loss/noisy:.3f}", auto_insert_metric_name=False)
    trainer = trainer_of(best, EarlyStopping("val_loss/clean"))
    trainer.fit(ByLoader(), tiny_loader(2), KEYED)
    assert best.best_model_score == trainer.callback_metrics["val_loss/noisy"]


@pytest.mark.parametrize("monitor", ["val_loss", "val_loss/nois", "val_loss/dataloader_idx_0"])
def test_a_monitor_that_names_no_loader_of_the_dict_is_refused_with_those_that_do(monitor):
    message = "Give 'val_loss/clean' or 'val_loss/noisy'"
    with pytest.raises(MisconfigurationError, match=rf"monitor='{monitor}'.*2 validation loaders. {message}"):
        trainer_of(EarlyStopping(monitor)).fit(ByLoader(), tiny_loader(2), KEYED)
    only = {"clean": tiny_loader(1)}
    with pytest.raises(MisconfigurationError, match=r"with 1 validation loader. Give 'val_loss'"):
        trainer_of(EarlyStopping("val_loss/clean")).fit(ByLoader(), tiny_loader(2), only)


@pytest.mark.parametrize(
    ("method", "loader", "error", "message"),
    [
        ("predict", lambda: CombinedLoader([filled(1.0)]), ValueError, "predictions are made loader by loader"),
        ("test", lambda: {"a": filled(1.0), "b": None}, TypeError, "loader 'b', gave None"),
        ("test", lambda: {1: filled(1.0), "1": filled(2.0)}, ValueError, "two loaders under the name '1'"),
        ("validate", lambda: limited(), ValueError, r"limits=\[1\].*limit_val_batches"),
        ("validate", lambda: CombinedLoader({"a": iter_of(1)}), TypeError, "loader 'a', is a generator"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(method, loader, error, message):
    with pytest.raises(error, match=rf"{method}\(dataloaders=\.\.\.\).*{message}"):
        getattr(trainer_of(), method)(Numbered(), loader())


def limited() -> CombinedLoader:
    loader = CombinedLoader([filled(1.0)], "sequential")
    loader.limits = 1
    return loader
