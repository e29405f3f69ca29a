"""SideCopies: batches that go to a GPU beside its work, on a GPU that is acted out, and on a real one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import leyden
from leyden.core import prefetch
from leyden.core.batches import Batches, resolve_transfer
from leyden.core.module import LightningModule
from leyden.core.prefetch import SideCopies, Streams
from leyden.fabric.precision import HalfPrecision, Precision
from leyden.utils.tree import move_data_to_device, tree_leaves
from models import TinyModel, tiny_data

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Event:
    """A place in a stream's work."""

    passed = False

    def query(self) -> bool:
        return self.passed


class ActedGpu:
    """A GPU acted out: nothing that it is told is done until the test has it go on, which it may do in many orders.

    Its two streams do their own work in order, and otherwise whatever the events between them allow, as drawn from
    ``seed``. Memory is used again as torch's allocators do: the host may have it for the same stream as soon as the
    tensor is gone, whatever is still to be done; pinned memory when the copies from it are done. New memory is NaN.

    Args:
        forgets: Waits that are left out: ``"staged"`` or ``"released"``.
        pinnable: Tensors that can be pinned.

    Attributes:
        waits: Times that the host waited for the device.
        asked: What it was asked for, in order.
    """

    def __init__(self, seed: int = 0, forgets: str = "", pinnable: float = math.inf) -> None:
        self.random = random.Random(seed)
        self.forgets, self.pinnable = forgets, pinnable
        self.streams: dict[str, deque[Callable[[], bool]]] = {"in use": deque(), "side": deque()}
        self.free: dict[Any, list[Tensor]] = defaultdict(list)
        self.made: dict[str, int] = defaultdict(int)
        self.readers: dict[int, int] = defaultdict(int)
        self.pinned_memory: dict[int, Tensor] = {}
        self.by_loader: list[Tensor] = []
        self.waits = 0
        self.asked: list[str] = []

    def is_busy(self) -> bool:
        return bool(self.streams["in use"])

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is known for known in self.by_loader)

    def pin(self, tensor: Tensor) -> Tensor:
        self.asked.append("pin")
        if not self.pinnable:
            raise RuntimeError("no more memory can be pinned")
        self.pinnable -= 1
        return self._new("pinned", tensor).copy_(tensor)

    def stage(self, pinned: Tensor) -> Tensor:
        self.asked.append("stage")
        return self._copy("side", pinned)

    def take(self, staged: Tensor) -> Tensor:
        self.asked.append("take")
        if self.forgets != "staged":
            self._wait("in use", self._record("side"))
        return self._copy("in use", staged)

    def release(self) -> Event:
        self.asked.append("release")
        event = self._record("in use")
        if self.forgets != "released":
            self._wait("side", event)
        return event

    def move(self, batch: Any) -> Any:
        """By the stream in use, for which the driver waits to read memory that is not pinned."""
        self.asked.append("move")
        moved = move_data_to_device(batch, "cpu")
        if any(isinstance(leaf, Tensor) and not self.is_pinned(leaf) for leaf in tree_leaves(batch)):
            self.waits += self.is_busy()
            while self.streams["in use"]:
                self.go_on(1)
        return moved

    def launch(self, work: Callable[[], None]) -> None:
        """Have the stream in use do ``work``."""
        self.streams["in use"].append(lambda: work() or True)

    def go_on(self, pieces: int, *names: str) -> None:
        """Do so many pieces of work of the streams ``names``, or of both: of whichever has one that waits for nothing.

        A piece tells if it could be done.
        """
        for _ in range(pieces):
            streams = [self.streams[name] for name in names or self.streams if self.streams[name]]
            self.random.shuffle(streams)
            if (able := next((stream for stream in streams if stream[0]()), None)) is None:
                assert names or not streams, "the streams wait for each other"
                return
            able.popleft()

    def _record(self, stream: str) -> Event:
        event = Event()
        self.streams[stream].append(lambda: setattr(event, "passed", True) or True)
        return event

    def _wait(self, stream: str, event: Event) -> None:
        self.streams[stream].append(event.query)

    def _copy(self, stream: str, source: Tensor) -> Tensor:
        made, place = self._new(stream, source), source.data_ptr()
        # What is told to a GPU is told by address: it keeps no tensor.
        to, of = made.detach().numpy(), source.detach().numpy()
        self.readers[place] += 1

        def copy() -> bool:
            to[...] = of
            self.readers[place] -= 1
            if not self.readers[place] and (memory := self.pinned_memory.pop(place, None)) is not None:
                self.free["pinned", memory.shape, memory.dtype].append(memory)
            return True

        self.streams[stream].append(copy)
        return made

    def _new(self, owner: str, like: Tensor) -> Tensor:
        """Memory of ``owner`` for a tensor like ``like``."""
        free = self.free[owner, like.shape, like.dtype]
        if free:
            memory = free.pop()
        else:
            memory = torch.full(like.shape, math.nan if like.is_floating_point() else -1, dtype=like.dtype)
            self.made[owner] += 1
        tensor = memory.view(memory.shape)
        weakref.finalize(tensor, self._let_go, owner, memory)
        return tensor

    def _let_go(self, owner: str, memory: Tensor) -> None:
        if owner == "pinned" and self.readers[memory.data_ptr()]:
            self.pinned_memory[memory.data_ptr()] = memory
        else:
            self.free[owner, memory.shape, memory.dtype].append(memory)


def numbered(count: int, shapes: Callable[[int], tuple[int, ...]] = lambda index: (3,)) -> list[list[Tensor]]:
    """Batches whose tensors tell their number: three of a shape, and one of another."""
    return [
        [*(torch.full(shapes(index), float(sign * index)) for sign in (1, -1, 2)), torch.full((2,), index)]
        for index in range(count)
    ]


def train(gpu: ActedGpu, batches: Any, keep: int = 0, copies: SideCopies | None = None) -> list[list[Tensor]]:
    """What a training reads of each batch on ``gpu``, keeping ``keep`` batches of before."""
    copies, read, kept = copies or SideCopies(gpu), [], deque(maxlen=keep)
    gpu.launch(lambda: None)

    def work(parts: list[Any]) -> Callable[[], None]:
        return lambda: read.append([torch.from_numpy(part.copy()) for part in parts])

    for batch in batches:
        on_device = copies(batch)
        gpu.launch(work([part.numpy() for part in on_device]))
        gpu.launch(lambda: None)
        kept.append(on_device)
        del on_device
        gpu.go_on(gpu.random.randrange(8))
    gpu.go_on(10_000)
    return read


def is_right(read: list[list[Tensor]], batches: list[list[Tensor]]) -> bool:
    """Every batch was read as it was."""
    assert len(read) == len(batches)
    parts = [zip(one, other, strict=True) for one, other in zip(read, batches, strict=True)]
    return all(torch.equal(one, other) for pair in parts for one, other in pair)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_every_step_reads_its_own_batch_in_whatever_order_the_device_works(keep):
    batches = numbered(12, lambda index: (index % 3 + 1,))
    for seed in range(150):
        gpu = ActedGpu(seed)
        if by_loader := seed % 2:
            gpu.by_loader = [part for batch in batches for part in batch]
        assert is_right(train(gpu, batches, keep), batches), f"seed {seed}"
        assert gpu.asked.count("stage") >= 24
        assert gpu.waits == 0 or not by_loader


@pytest.mark.parametrize("forgets", ["staged", "released"])
def test_without_either_wait_some_step_would_read_another_batch(forgets):
    batches = numbered(12)
    assert not all(is_right(train(ActedGpu(seed, forgets), batches), batches) for seed in range(20))


def test_the_next_batch_is_copied_while_the_device_works():
    gpu = ActedGpu()
    gpu.launch(lambda: None)
    (on_device,) = SideCopies(gpu)([torch.full((3,), 7.0)])
    gpu.go_on(100, "side")  # as far as it gets, while the stream in use is still with the step before
    (staged,) = gpu.free["side", (3,), torch.float32]
    assert staged.tolist() == [7, 7, 7]
    assert on_device.isnan().all()
    gpu.go_on(100)
    assert on_device.tolist() == [7, 7, 7]


def test_one_batch_waits_on_the_device_however_far_it_is_behind():
    gpu, batches = ActedGpu(), numbered(40)
    copies = SideCopies(gpu)
    gpu.by_loader = [part for batch in batches for part in batch]
    gpu.launch(lambda: None)
    for batch in batches:
        copies(batch)
    assert gpu.made["side"] == 4  # its tensors
    assert gpu.made["pinned"] == 0
    copies(numbered(1)[0])
    assert gpu.made["pinned"] == 4  # these batches are not counted against it
    assert "move" not in gpu.asked


def test_at_most_eight_batches_lie_in_memory_that_was_pinned_here():
    gpu = ActedGpu()
    copies = SideCopies(gpu)
    gpu.launch(lambda: None)
    for batch in numbered(8):
        copies(batch)
    assert (gpu.made["pinned"], gpu.waits) == (32, 0)
    copies(numbered(1)[0])
    assert (gpu.made["pinned"], gpu.waits) == (32, 1)  # as it would have waited for every batch
    gpu.launch(lambda: None)
    for batch in numbered(8):
        copies(batch)
    assert (gpu.made["pinned"], gpu.waits) == (32, 1)


def test_pinned_memory_is_used_again():
    gpu, batches = ActedGpu(), numbered(100)
    train(gpu, batches)
    assert gpu.asked.count("pin") > 100
    assert gpu.made["pinned"] <= 32


def test_what_the_loader_pinned_is_not_pinned_again_unless_it_lies_in_pieces():
    gpu = ActedGpu()
    whole, pieces = torch.arange(3.0), torch.arange(6.0)[::2]
    gpu.by_loader = [whole, pieces]
    gpu.launch(lambda: None)
    first, second = SideCopies(gpu)([whole, pieces])
    assert gpu.asked == ["stage", "take", "pin", "stage", "take", "release"]
    gpu.go_on(100)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [0, 2, 4])


def test_where_no_more_memory_can_be_pinned_batches_go_as_without():
    gpu, batches = ActedGpu(pinnable=1), numbered(3)
    copies, moved = SideCopies(gpu), []
    for batch in batches:
        gpu.launch(lambda: None)
        moved.append(copies(batch))
    gpu.go_on(1000)
    assert is_right(moved, batches)
    assert gpu.asked.count("pin") == 2  # and not once more
    assert gpu.asked.count("release") == 1


def test_a_device_that_has_nothing_to_do_is_given_the_batch_at_once():
    gpu = ActedGpu()
    assert SideCopies(gpu)([torch.ones(3)])[0].tolist() == [1, 1, 1]
    assert gpu.asked == ["move"]


# What a batch may be.


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Sample:
    x: Tensor
    made: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Sample.made += 1


class Own:
    """A batch that knows itself how to get to a device."""

    def __init__(self) -> None:
        self.moves = 0

    def to(self, device: Any) -> Own:
        self.moves += 1
        return self


class Labelled(Tensor):
    pass


def on_a_busy_device(batch: Any) -> tuple[Any, list[str]]:
    """``batch`` on a device that has work, done by now; and what the device was asked."""
    gpu = ActedGpu()
    gpu.launch(lambda: None)
    moved = SideCopies(gpu)(batch)
    gpu.go_on(100)
    return moved, gpu.asked


def test_containers_come_back_as_they_were():
    batch = {"pair": Pair(torch.ones(1), torch.zeros(1)), "sample": Sample(torch.ones(2)), "name": ("a", 1, None)}
    Sample.made = 0
    moved, _ = on_a_busy_device(batch)
    assert type(moved["pair"]) is Pair
    assert [moved["pair"].x.item(), moved["pair"].y.item()] == [1, 0]
    assert moved["sample"].x.tolist() == [1, 1]
    assert moved["name"] == ("a", 1, None)
    assert Sample.made == 1


@pytest.mark.parametrize(
    "leaf",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.ones(2)),
        torch.ones(2).as_subclass(Labelled),
        torch.ones(2, device="meta"),
        nn.utils.rnn.pack_sequence([torch.ones(2)]),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_what_is_more_than_its_memory_goes_as_without(leaf, monkeypatch):
    gpu = ActedGpu()
    gpu.launch(lambda: None)
    monkeypatch.setattr(gpu, "move", lambda leaf: ("moved", leaf))
    moved, plain = SideCopies(gpu)([leaf, torch.ones(3)])
    assert moved == ("moved", leaf) or moved[1] is leaf
    gpu.go_on(100)
    assert plain.tolist() == [1, 1, 1]


def test_the_to_of_a_batch_of_the_users_is_called_once():
    batch = Own()
    moved, asked = on_a_busy_device({"own": batch})
    assert moved["own"] is batch
    assert (batch.moves, asked) == (1, ["move"])


def test_nothing_to_move_is_nothing_to_do():
    assert on_a_busy_device(None) == (None, [])
    assert on_a_busy_device(["a", 3]) == (["a", 3], [])


def test_the_same_tensor_twice_comes_as_two_as_without():
    tensor = torch.ones(2)
    moved, _ = on_a_busy_device([tensor, tensor])
    assert moved[0].data_ptr() != moved[1].data_ptr()


def test_after_a_failure_the_side_stream_waits_as_ever():
    class Broken(Own):
        def to(self, device: Any) -> Any:
            raise OSError("no")

    batches = numbered(6)
    for seed in range(50):
        gpu = ActedGpu(seed)
        copies = SideCopies(gpu)
        gpu.launch(lambda: None)
        with pytest.raises(OSError, match="no"):
            copies([torch.full((3,), 7.0), Broken()])
        assert gpu.asked == ["pin", "stage", "take", "move", "release"]
        assert is_right(train(gpu, batches, copies=copies), batches), f"seed {seed}"


IMAGES = torch.randn(4, 3, 5, 6)
LAST = IMAGES.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "tensor",
    [IMAGES, LAST, IMAGES.permute(3, 1, 0, 2), IMAGES[:, :, ::2], IMAGES[:1].expand(4, 3, 5, 6), LAST[:2, :2],
     LAST[:1].expand(4, 3, 5, 6), IMAGES[:, 1:].permute(2, 0, 3, 1), IMAGES[0, 0, 0, 0], torch.empty(0, 3),
     torch.empty_strided((1, 3), (7, 1)).fill_(2), torch.randn(3, 4, dtype=torch.cfloat).conj()],
)  # fmt: skip
def test_strides_on_the_device_are_those_without(tensor):
    # Kernels may sum in another order for other strides. Streams.pin makes an empty_like.
    pinned = torch.empty_like(tensor).copy_(tensor)
    assert pinned.to("meta").clone().stride() == tensor.to("meta").stride()
    copied = pinned.to("cpu", copy=True).clone()
    assert copied.stride() == tensor.to("cpu", copy=True).stride()
    assert torch.equal(copied, tensor)


# In a pass.


def a_pass(gpu: ActedGpu, loader: Any, events: list[Any], steps: int = 1000, limit: int | None = None) -> Batches:
    """A pass of ``steps`` steps at most over ``loader``, on ``gpu``."""
    copies = SideCopies(gpu)
    batches = Batches(loader, "loader", limit, "limit_train_batches", lambda batch, index: copies(batch))
    gpu.launch(lambda: None)
    pass_ = batches.run()
    for step, _ in zip(range(steps), pass_, strict=False):
        events.append(("step", step, batches.done, batches.is_last, batches.fetching))
        gpu.launch(lambda: None)
    pass_.close()
    return batches


class Told(Dataset[Tensor]):
    """``count`` batches, and word of each that is read."""

    def __init__(self, count: int, events: list[Any], fails_at: int = -1) -> None:
        self.count, self.events, self.fails_at = count, events, fails_at

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index == self.fails_at:
            raise OSError(f"batch {index}")
        self.events.append(("read", index))
        return torch.full((3,), float(index))


def told(count: int, events: list[Any], fails_at: int = -1) -> DataLoader[Tensor]:
    return DataLoader(Told(count, events, fails_at), batch_size=None)


def test_a_batch_is_read_behind_the_step_before():
    events: list[Any] = []
    a_pass(ActedGpu(), told(3, events), events)
    assert events == [
        ("read", 0),
        ("step", 0, 0, False, False),
        ("read", 1),
        ("step", 1, 1, False, False),
        ("read", 2),
        ("step", 2, 2, True, False),
    ]


def test_nothing_is_read_beyond_a_limit_or_a_stop():
    for options in ({"limit": 2}, {"steps": 2}):
        events: list[Any] = []
        batches = a_pass(ActedGpu(), told(5, events), events, **options)
        assert [event for event in events if event[0] == "read"] == [("read", 0), ("read", 1)]
        assert not batches.fetching


def test_a_failure_of_the_loader_comes_behind_the_steps_before():
    events: list[Any] = []
    with pytest.raises(OSError, match="batch 2"):
        a_pass(ActedGpu(), told(5, events, fails_at=2), events)
    assert events[-1][:2] == ("step", 1)


def test_the_numbers_that_training_draws_are_those_without():
    def drawn(gpu: ActedGpu | None) -> list[float]:
        torch.manual_seed(0)
        loader = DataLoader(tiny_data(24), batch_size=4, shuffle=True, collate_fn=lambda samples: torch.rand(3))
        copies = None if gpu is None else SideCopies(gpu)
        transfer = None if copies is None else lambda batch, index: copies(batch)
        numbers = []
        for batch in Batches(loader, "loader", None, "limit_train_batches", transfer).run():
            if gpu is not None:
                gpu.go_on(100)
                gpu.launch(lambda: None)
            numbers += [*batch.tolist(), torch.rand(()).item()]  # as dropout would
        return numbers

    gpu = ActedGpu()
    gpu.launch(lambda: None)
    assert drawn(gpu) == drawn(None)
    assert gpu.asked.count("stage") == 6


# On torch's streams.


class OnCpu(Streams):
    """The streams of torch.cpu, which do their work at once; they know not if they are busy, and pin nothing."""

    def is_busy(self) -> bool:
        return True

    def pin(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor).copy_(tensor)


def test_torchs_streams_are_called_as_they_can_be_where_there_are_those_of_the_cpu_alone():
    streams = OnCpu(torch.device("cpu"))
    pinned = streams.pin(torch.arange(3.0))
    assert not streams.is_pinned(torch.ones(3))
    assert streams.take(streams.stage(pinned)).tolist() == [0, 1, 2]
    assert streams.release().query()
    batch = SideCopies(streams)({"x": torch.arange(3), "name": "a"})
    assert (batch["x"].tolist(), batch["name"]) == ([0, 1, 2], "a")


# Where a run asks for it.


@pytest.fixture
def staged(monkeypatch) -> list[Tensor]:
    """What goes by a side stream of a GPU, which is the CPU."""
    seen: list[Tensor] = []

    class Seen(OnCpu):
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"
            super().__init__(torch.device("cpu"))

        def stage(self, pinned: Tensor) -> Tensor:
            seen.append(pinned)
            return super().stage(pinned)

    monkeypatch.setattr(prefetch, "Streams", Seen)
    return seen


def transfer_of(model: LightningModule, fast: bool = True, precision: Any = None) -> Any:
    strategy = SimpleNamespace(device=torch.device("cuda", 0), precision=precision or Precision())
    return resolve_transfer(model, None, LightningModule, strategy, fast)


def test_a_run_on_a_gpu_copies_by_the_side_between_the_users_hooks(staged):
    class Model(TinyModel):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch + 1

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 10

    assert transfer_of(Model())(torch.ones(1), 0).tolist() == [20]
    assert [part.tolist() for part in staged] == [[2]]


def test_a_precision_casts_before(staged):
    transfer_of(TinyModel(), precision=HalfPrecision("bf16-true"))(torch.ones(1), 0)
    assert staged[0].dtype is torch.bfloat16


def test_a_batch_that_the_user_moves_is_the_users_to_move(staged):
    class Model(TinyModel):
        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    assert transfer_of(Model())(torch.ones(1), 0).tolist() == [1]
    assert staged == []


def test_without_fast_paths_there_is_no_side_stream(monkeypatch):
    monkeypatch.setattr(prefetch, "Streams", None)
    assert transfer_of(TinyModel(), fast=False) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("fast", [True, False])
def test_on_a_gpu_a_run_copies_by_the_side_if_it_may(fast, monkeypatch):
    seen = []

    class Seen(Streams):
        def stage(self, pinned: Tensor) -> Tensor:
            seen.append(pinned)
            return super().stage(pinned)

    class Model(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            torch.cuda._sleep(LONG // 10)
            return self.loss(batch)

    monkeypatch.setattr(prefetch, "Streams", Seen)
    loader = DataLoader(tiny_data(64), batch_size=16)
    leyden.Trainer(max_epochs=1, accelerator="gpu", devices=1, fast_paths=fast, **QUIET).fit(Model(), loader)
    assert bool(seen) == fast


LONG = 200_000_000  # cycles of a GPU, about 0.1 s


class Asked(Streams):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0))
        self.staged = self.pinned = 0

    def stage(self, pinned: Tensor) -> Tensor:
        self.staged += 1
        return super().stage(pinned)

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned += 1
        return super().pin(tensor)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sums_of_slow_steps(streams: Streams, batches: list[Tensor], keep: int = 0) -> list[float]:
    """What the steps of a GPU that is far behind read of ``batches``."""
    copies, kept, sums = SideCopies(streams), deque[Tensor](maxlen=keep), []
    with no_waiting():
        for batch in batches:
            torch.cuda._sleep(LONG // 10)
            on_device = copies(batch)
            sums.append(on_device.double().mean())
            kept.append(on_device)
            del on_device
    return torch.stack(sums).tolist()


def full(count: int, pin: bool) -> list[Tensor]:
    return [torch.full((1 << 20,), float(index), pin_memory=pin) for index in range(count)]


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("pin", [False, True])
def test_on_a_gpu_far_behind_every_step_reads_its_own_batch(pin, keep):
    streams = Asked()
    assert sums_of_slow_steps(streams, full(20, pin), keep) == list(range(20))
    assert streams.staged == 20 if pin else streams.staged >= 8
    assert streams.pinned == 0 if pin else streams.pinned >= 8


@pytest.mark.gpu
def test_on_a_gpu_a_copy_that_is_late_is_waited_for():
    class Late(Asked):
        def stage(self, pinned: Tensor) -> Tensor:
            with torch.cuda.stream(self._side):
                torch.cuda._sleep(LONG)
            return super().stage(pinned)

    class TakesAtOnce(Late):
        def take(self, staged: Tensor) -> Tensor:
            return staged.clone()

    assert sums_of_slow_steps(Late(), full(4, pin=True)) == [0, 1, 2, 3]
    assert sums_of_slow_steps(TakesAtOnce(), full(4, pin=True)) != [0, 1, 2, 3]


@pytest.mark.gpu
def test_on_a_gpu_the_side_stream_waits_before_it_writes_again():
    class SlowToTake(Asked):
        def take(self, staged: Tensor) -> Tensor:
            torch.cuda._sleep(LONG)
            return super().take(staged)

    class WritesAtOnce(SlowToTake):
        def release(self) -> Any:
            event = torch.cuda.Event()
            event.record()
            return event

    assert sums_of_slow_steps(SlowToTake(), full(4, pin=True)) == [0, 1, 2, 3]
    assert sums_of_slow_steps(WritesAtOnce(), full(4, pin=True)) != [0, 1, 2, 3]


@pytest.mark.gpu
def test_on_a_gpu_the_host_goes_on_and_the_memory_of_one_batch_is_enough():
    streams, batches = Asked(), full(6, pin=False)
    copies = SideCopies(streams)
    for batch in batches:  # memory is pinned and allocated, for which a driver may wait
        torch.cuda._sleep(LONG // 10)
        copies(batch)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, event = torch.cuda.memory_allocated(), torch.cuda.Event()
    torch.cuda._sleep(LONG * 5)
    event.record()
    for batch in batches:
        copies(batch)
    assert not event.query()
    assert torch.cuda.max_memory_allocated() - before <= 2 * batches[0].nbytes  # staged, and handed out
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_training_gives_the_same_weights_to_the_last_bit(pin, workers):
    class Model(TinyModel):
        def __init__(self) -> None:
            super().__init__("adam")
            self.drop = nn.Dropout(0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            torch.cuda._sleep(LONG // 100)  # so that the next batch finds the GPU at work
            return self.loss((self.drop(batch[0]), batch[1]))

    def trained(fast: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        loader = DataLoader(tiny_data(160), batch_size=16, shuffle=True, num_workers=workers, pin_memory=pin)
        model = Model()
        leyden.Trainer(max_epochs=2, accelerator="gpu", devices=1, fast_paths=fast, **QUIET).fit(model, loader)
        return model.state_dict()

    one, other = trained(True), trained(False)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
def test_on_a_gpu_strides_and_values_are_those_without():
    on_gpu = IMAGES.cuda()
    dataset = TensorDataset(IMAGES, LAST, IMAGES.permute(0, 3, 1, 2))
    for batch in DataLoader(dataset, batch_size=2):
        batch = [*batch, batch[0].permute(3, 1, 0, 2), batch[0][:, ::2], batch[0][:1].expand(4, 3, 5, 6), on_gpu]
        expected = move_data_to_device(batch, "cuda:0")
        torch.cuda._sleep(LONG)
        for one, other in zip(SideCopies(Asked())(batch), expected, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
        assert one is on_gpu
