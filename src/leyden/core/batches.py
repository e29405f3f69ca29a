"""The loaders of a stage: where they come from, how many batches count, their order and position."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from operator import length_hint
from types import GeneratorType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from leyden.core.combined import CombinedLoader, Mode, check_loader, keeps_its_length, size_of
from leyden.core.datamodule import LightningDataModule
from leyden.core.hooks import overrides, takes
from leyden.core.reading import READY, Pass, StatefulPass, begin_pass, forget, state_holder
from leyden.core.state import Position, RunState
from leyden.utils.errors import CheckpointError, MisconfigurationError, warn
from leyden.utils.lazy import LazyModule
from leyden.utils.rank import say
from leyden.utils.seed import rng_state, set_rng_state
from leyden.utils.tree import move_data_to_device

Transfer = Callable[[Any, int], Any]

_faults = LazyModule("leyden.core.faults")
_prefetch = LazyModule("leyden.core.prefetch")
_END = object()


class Source:
    """Where the loaders of one kind come from: an argument of the Trainer's method, the datamodule or the module.

    Attributes:
        kind: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
        name: The place, for messages.
        loaded: What ``load`` gave last, as the user made it; None before.
    """

    def __init__(self, kind: str, given: Any, argument: str, datamodule: Any, module: Any, module_base: type) -> None:
        self.kind = kind
        self.loaded: Any = None
        self._given = given
        self._hook: Callable[[], Any] | None = None
        hook = f"{kind}_dataloader"
        if given is not None:
            self.name = argument
        elif datamodule is not None and overrides(datamodule, hook, LightningDataModule):
            self.name, self._hook = f"{type(datamodule).__name__}.{hook}()", getattr(datamodule, hook)
        elif overrides(module, hook, module_base):
            self.name, self._hook = f"{type(module).__name__}.{hook}()", getattr(module, hook)
        else:
            self.name = ""

    @property
    def exists(self) -> bool:
        """True when there is anywhere to take loaders from."""
        return bool(self.name)

    @property
    def is_asked(self) -> bool:
        """True where a hook makes the loaders, and may be asked again."""
        return self._hook is not None

    def load(self) -> Any:
        """The loader or collection of loaders."""
        self.loaded = self._hook() if self._hook is not None else self._given
        return self.loaded


class Batches:
    """The batches of one loader, on their device, up to a limit.

    Attributes:
        loader: What the user made.
        count: Batches that a pass takes; ``inf`` when that is not known before the end.
        is_last: The batch handed out last is the last one of the pass.
        name: What follows ``/`` in the names of its metrics where there are several loaders.
        knows_its_place: A loader that keeps a state goes on by itself; False where a checkpoint has no state of it.
        reading: The pass in progress, or the last one; None for combined loaders.
        fast: Batches may be gathered from tensors, see reading.py.
        done: Index of the batch handed out last.
    """

    knows_its_place = True
    reading: Pass | None = None
    fast = True
    done = 0
    _handing_out: weakref.ref[Iterator[Any]] | None = None

    def __init__(
        self, loader: Any, where: str, limit: int | float | None, option: str, transfer: Transfer | None, name: str = ""
    ) -> None:
        for member, place in _members(loader, where):
            check_loader(member, place)
            if limit != 0 and size_of(member) == 0:
                raise MisconfigurationError(f"{place} is empty: it has no batches. Check its dataset, and drop_last.")
        self.loader: Any = loader
        self.name = name
        self.where = where
        self.transfer = transfer
        self.is_last = False
        size = size_of(loader)
        self.count = _limited(size, limit, where, option)
        self._whole = self.count == size
        # A length is a promise that iterable datasets often break; then one batch is read ahead to see the end.
        self._known = self._sure = size is not None and keeps_its_length(loader)

    def run(self, dataloader_idx: int = 0) -> Iterator[Any]:
        """One pass."""
        return self._passing(self._begin(), dataloader_idx, 0)

    @property
    def fetching(self) -> bool:
        """A batch is waited for, or on its way to the device."""
        generator = None if self._handing_out is None else self._handing_out()
        return isinstance(generator, GeneratorType) and generator.gi_running

    def begin_epoch(self, epoch: int) -> None:
        """Tell every sampler which epoch this is, so that it can order its data by it."""
        samplers: dict[int, Any] = {}
        for loader, _ in _members(self.loader):
            for holder in (loader, getattr(loader, "batch_sampler", None)):
                sampler = getattr(holder, "sampler", None)
                if callable(getattr(sampler, "set_epoch", None)):
                    samplers[id(sampler)] = sampler
        for sampler in samplers.values():
            sampler.set_epoch(epoch)

    def _begin(self, done: int = 0) -> Iterator[Any]:
        """The batches of a pass behind the first ``done``."""
        self._sure = self._known
        if isinstance(self.loader, CombinedLoader):
            return self.loader.batches(done)
        reading = self.reading = begin_pass(self.loader, self.fast)
        if done and not (self.knows_its_place and state_holder(self.loader) is not None):
            began = time.monotonic()
            for _ in range(done):
                if not reading.skip():
                    break
            if reading.rereads:
                say(
                    f"{self.where} was read again to go on behind batch {done}: {time.monotonic() - began:.1f} s. "
                    "A dataset or loader with state_dict() and load_state_dict() would be asked instead."
                )
        rest = reading.rest()
        self._sure = self._known or (type(rest) in READY and length_hint(rest) == self.count - done)
        return rest

    @property
    def indices(self) -> Any:
        """The samples' indices of the batch in work, as the sampler gave them; None where they are not known."""
        return None if self.reading is None else self.reading.indices_of(self.done)

    def _passing(self, iterator: Iterator[Any], dataloader_idx: int, done: int) -> Iterator[Any]:
        """What is left of a pass of which ``done`` batches are over, and gone from ``iterator``."""
        self.is_last = done >= self.count
        generator = self._hand_out(iterator, dataloader_idx, done)
        self._handing_out = weakref.ref(generator)
        return generator

    def _hand_out(self, iterator: Iterator[Any], dataloader_idx: int, done: int) -> Iterator[Any]:
        count, transfer, reading = self.count, self.transfer, self.reading
        last, at = count - 1, done - 1
        try:
            if not self.is_last:
                left = None if count == math.inf else int(count) - done
                batches = islice(iterator, left)
                if not self._sure:  # never beyond a limit: the next batch may be dear, or have yet to come
                    batches = islice(_read_ahead(iterator if self._whole else batches, self), left)
                for batch in batches:  # enumerate would keep the batch before, which may be another by now
                    self.done = at = at + 1
                    if at >= last:
                        self.is_last = True
                    if transfer is not None:
                        batch = transfer(batch, dataloader_idx)
                    yield batch
                if at < 0:
                    raise MisconfigurationError(
                        f"{self.where} gave no batch at all. An iterator, such as a generator, can be read only once: "
                        "give a DataLoader, or an object whose __iter__ begins anew."
                    )
            if self._whole:
                next(iterator, None)  # to its very end, as a for loop goes: samplers draw, and loaders tidy up, there
        except Exception as error:
            for member, place in _members(self.loader, self.where):
                if not getattr(member, "num_workers", 0):
                    continue
                if explained := _faults.explain_worker_death(error, member, place):
                    raise explained from error
            raise
        finally:
            if reading is not None:  # which may no longer be the one in progress
                reading.close()

    def end_workers(self) -> None:
        """End the worker processes that DataLoaders keep from pass to pass."""
        for member, _ in _members(self.loader):
            if isinstance(member, DataLoader):
                forget(member)

    def before_reading_ahead(self) -> Callable[[], None] | None:
        """What to call before a batch is read while the one before it is still to be worked on; None for nothing."""
        return None


class TrainBatches(Batches):
    """The training loader and its place in the epoch.

    Attributes:
        times: Measures how long its batches are waited for; None where nobody does.
    """

    times: Any = None
    _epoch_generators: list[torch.Tensor] | None = None
    _state_before_reading: Any = None
    _lane_state: Any = None

    def rest_of_epoch(self, position: Position, state: RunState) -> Iterator[Any]:
        """The batches from ``position.batch`` on, in the order that was drawn when the epoch began.

        The order depends on the random number generators at the epoch's start; they are remembered there, put back to
        draw it again in mid-epoch, and then left as they were found.
        """
        began = time.perf_counter()
        now, generators = rng_state(), self._generator_states()
        if position.batch == 0 or state.epoch_rng is None:
            state.epoch_rng, self._epoch_generators = now, generators
        else:
            set_rng_state(state.epoch_rng)
            self._set_generators(self._epoch_generators or [])
        iterator = self._begin(position.batch)
        if position.batch and self._lane_state is not None and isinstance(self.reading, StatefulPass):
            self.reading.lane.load_state_dict(self._lane_state)
        self.knows_its_place, self._lane_state = True, None
        if position.batch:
            set_rng_state(now)  # the loader's own generators have drawn what they draw in the epoch
        if self.times is not None:
            iterator = self.times.timed(iterator, self.loader, began)
        return self._passing(iterator, 0, position.batch)

    def check_resumable(self) -> None:
        """Refuse what cannot be read again from where a checkpoint was made."""
        for member, place in _members(self.loader, self.where):
            if isinstance(member, Iterator) and state_holder(member) is None:
                raise CheckpointError(
                    f"{place} is an iterator ({type(member).__name__}), which cannot be taken back to where the "
                    "checkpoint was made. To resume, give a DataLoader, or an object whose __iter__ begins anew."
                )

    def before_reading_ahead(self) -> Callable[[], None] | None:
        """What remembers the loader's state of then: a batch that is only read ahead is not done."""
        holder = state_holder(self.loader)
        if holder is None:
            return None

        def remember() -> None:
            self._state_before_reading = self._place(holder)

        return remember

    def state_dict(self, in_epoch: bool) -> dict[str, Any]:
        """The states of the loader, where it keeps one, and of its random generators.

        Args:
            in_epoch: The epoch is not over.
        """
        state: dict[str, Any] = {"generators": self._generator_states(), "epoch_generators": self._epoch_generators}
        if (holder := state_holder(self.loader)) is not None:
            ahead = self._state_before_reading if in_epoch else None
            state.update(self._place(holder) if ahead is None else ahead)
        return state

    def _place(self, holder: Any) -> dict[str, Any]:
        lane = getattr(self.reading, "lane", None)
        return {"loader": holder.state_dict()} | ({} if lane is None else {"lane": lane.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give loader and generators their states back."""
        self._set_generators(state.get("generators", []))
        self._epoch_generators = state.get("epoch_generators")
        self.knows_its_place = "loader" in state or not state
        self._lane_state = state.get("lane")
        if "loader" in state and (holder := state_holder(self.loader)) is not None:
            holder.load_state_dict(state["loader"])

    def _generators(self) -> list[torch.Generator]:
        """The generators that the loader and its samplers draw from, where they have their own."""
        found = []
        for loader, _ in _members(self.loader):
            batch_sampler = getattr(loader, "batch_sampler", None)
            samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
            found += [getattr(holder, "generator", None) for holder in (loader, *samplers)]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def _generator_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=False):  # there may be others now
            generator.set_state(state)


def _members(loader: Any, where: str = "") -> list[tuple[Any, str]]:
    """The loaders of which ``loader`` is made, and where they come from."""
    if not isinstance(loader, CombinedLoader):
        return [(loader, where)]
    places = [f"{where}, loader {name!r}," if name else where for name in loader.names]
    return list(zip(loader.flattened, places, strict=True))


def _read_ahead(iterator: Iterator[Any], batches: Batches) -> Iterator[Any]:
    """``iterator``, one batch ahead, so that its last batch is known as such."""
    ahead, before = next(iterator, _END), batches.before_reading_ahead()
    while ahead is not _END:
        if before is not None:
            before()
        following = next(iterator, _END)
        if following is _END:
            batches.is_last = True
        yield ahead
        ahead = following


def _limited(size: int | None, limit: int | float | None, where: str, option: str) -> int | float:
    """How many batches of ``size`` count under ``limit``: a number if it is an int, a fraction if it is a float."""
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return math.inf if size is None else size
    if isinstance(limit, int):
        return limit if size is None else min(limit, size)
    if limit == 0.0:
        return 0
    if size is None:
        raise MisconfigurationError(
            f"Trainer({option}={limit}) is a fraction, and {where} does not know its length. Give a number of batches."
        )
    if (count := int(size * limit)) == 0:
        raise MisconfigurationError(
            f"Trainer({option}={limit}) of the {size} batches of {where} is less than one batch. "
            f"Give at least {math.ceil(1e4 / size) / 1e4}, or a number of batches."
        )
    return count


def one_loader(source: Source) -> Any:
    """The training loader of ``source``."""
    loader = source.load()
    if loader is None:
        raise MisconfigurationError(f"{source.name} returned None. Return a DataLoader, or any iterable of batches.")
    if isinstance(loader, Mapping) or _are_loaders(loader):
        loader = _combined(loader, "max_size_cycle", source)
    if isinstance(loader, CombinedLoader):
        _check_combination(loader, source.name)
        if loader.mode == "sequential":
            raise MisconfigurationError(
                f"{source.name} gave a CombinedLoader(mode='sequential'), and a training step takes a batch of each "
                "loader. Use 'max_size_cycle', 'max_size' or 'min_size'; to train on one after the other give a "
                "DataLoader over a torch.utils.data.ConcatDataset."
            )
    return loader


def several_loaders(source: Source) -> dict[str, Any]:
    """The loaders of ``source`` for validation, test or prediction, in order, by the names they give to metrics.

    Those are the keys where the loaders are in a mapping.
    """
    given = source.load()
    if given is None:
        raise MisconfigurationError(f"{source.name} returned None. Return a DataLoader, or a list of them.")
    if isinstance(given, Mapping | list | tuple) and not given:
        raise MisconfigurationError(
            f"{source.name} gave an empty {type(given).__name__}: there is no loader in it. Leave it out, or give a "
            f"loader. Trainer(limit_{source.kind}_batches=0) passes over the loaders that are there."
        )
    if isinstance(given, Mapping) or _are_loaders(given):
        given = _combined(given, "sequential", source)
    if isinstance(given, CombinedLoader):
        _check_combination(given, source.name)
        if given.mode == "sequential":
            return _by_name(given, source.name)
        if source.kind == "predict":
            raise MisconfigurationError(
                f"{source.name} gave a CombinedLoader(mode={given.mode!r}), and predictions are made loader by loader. "
                "Use the mode 'sequential', or give the loaders without CombinedLoader."
            )
    return {_numbered(0): given}


def _numbered(index: int) -> str:
    return f"dataloader_idx_{index}"


def _by_name(loader: CombinedLoader, where: str) -> dict[str, Any]:
    names = loader.names
    if not isinstance(loader.iterables, Mapping):
        names = [_numbered(index) for index in range(len(names))]
    elif twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisconfigurationError(f"{where} gave two loaders under the name {twice[0]!r}. Give each its own key.")
    return dict(zip(names, loader.flattened, strict=True))


def _combined(given: Any, mode: Mode, source: Source) -> CombinedLoader:
    try:
        return CombinedLoader(given, mode)
    except (TypeError, MisconfigurationError) as error:
        raise type(error)(f"{source.name}: {error}") from None


def _check_combination(loader: CombinedLoader, where: str) -> None:
    if loader.limits is not None:
        raise MisconfigurationError(
            f"{where} gave a CombinedLoader with limits={loader.limits!r}, which the Trainer does not look at. "
            "Use Trainer(limit_val_batches=...) and its like."
        )
    for member, place in _members(loader, where):
        if isinstance(member, GeneratorType):
            raise TypeError(
                f"{place} is a generator, which can be read only once. Give a DataLoader, or list(generator)."
            )


def _are_loaders(given: Any) -> bool:
    """True for a collection of loaders, False for a loader, such as a collection of ready batches.

    Datasets count as loaders, to be refused as such.
    """
    if isinstance(given, list | tuple | Mapping):
        items = list(given.values() if isinstance(given, Mapping) else given)
        return bool(items) and all(map(_is_loader, items))
    return False


def _is_loader(item: Any) -> bool:
    loader = isinstance(item, DataLoader | Dataset | CombinedLoader) or size_of(getattr(item, "dataset", None))
    return bool(loader) or _are_loaders(item)


def without_shuffling(loader: Any, where: str) -> Any:
    """``loader`` in a fixed order, for ``overfit_batches``."""
    if isinstance(loader, CombinedLoader):
        in_order = copy.copy(loader)
        in_order.flattened = [without_shuffling(member, place) for member, place in _members(loader, where)]
        return in_order
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RandomSampler):
        return loader
    warn("LD030", f"overfit_batches: {where} shuffles, so it is read in order instead, the same batches every epoch.")
    batch_sampler = loader.batch_sampler
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=SequentialSampler(loader.dataset),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=getattr(batch_sampler, "drop_last", False),
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def resolve_transfer(module: Any, datamodule: Any, module_base: type, strategy: Any, fast: bool) -> Transfer | None:
    """How a batch gets to the device, or None when it is there already and nobody wants to see it on its way.

    The hooks ``on_before_batch_transfer``, ``transfer_batch_to_device`` and ``on_after_batch_transfer`` are the
    datamodule's where it has them, the module's otherwise.

    Args:
        module: The user's.
        datamodule: The user's, or None.
        module_base: The class whose hooks do nothing.
        strategy: Has the device and the precision.
        fast: Have a GPU copy a batch while it works on the one before.
    """
    device, precision = strategy.device, strategy.precision
    hooks: dict[str, Callable[..., Any]] = {}
    for name, arguments in (
        ("on_before_batch_transfer", 2),
        ("transfer_batch_to_device", 3),
        ("on_after_batch_transfer", 2),
    ):
        for owner, base in ((datamodule, LightningDataModule), (module, module_base)):
            if owner is not None and overrides(owner, name, base):
                hook = getattr(owner, name)
                if not takes(hook, arguments):
                    raise MisconfigurationError(
                        f"{type(owner).__name__}.{name} must take "
                        f"({'batch, device' if arguments == 3 else 'batch'}, dataloader_idx)."
                    )
                hooks[name] = hook
                break
    if not hooks and not precision.casts_input and device.type == "cpu":
        return None
    before, move, after = (hooks.get(name) for name in _TRANSFER_HOOKS)
    to_device: Callable[[Any], Any] = partial(move_data_to_device, device=device)
    if fast and move is None and device.type == "cuda":
        to_device = _prefetch.SideCopies(_prefetch.Streams(device))

    def transfer(batch: Any, dataloader_idx: int) -> Any:
        if precision.casts_input:
            batch = precision.convert_input(batch)
        if before is not None:
            batch = before(batch, dataloader_idx)
        batch = to_device(batch) if move is None else move(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)

    return transfer


_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
