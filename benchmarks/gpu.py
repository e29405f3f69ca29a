"""Time training on a GPU against the loop written by hand, and write the table of RESULTS.md.

    python benchmarks/gpu.py [--only tiny resnet gpt] [--peers] [--repeats 5] [--steps 100]

All contestants train the same model, from the same weights, on the same batches, which are on the GPU already, with
the same options. Each trains one epoch that does not count (kernels are loaded, models compiled) and then two that do,
between two waits for the GPU. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import report
import run
from contestants import BARE, LEYDEN, LIGHTNING, Framework
from loops import Batch, tiny
from networks import GPT, resnet18
from rows import FULL, HAND, IT, Row
from timing import Clock, Contestant


class Ready:
    """The same batch, so many times."""

    def __init__(self, batch: Batch, batches: int) -> None:
        self.batch, self.batches = batch, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.batches)


class DeviceClock(Clock):
    """Waits for the GPU's work to be done before it looks at the time."""

    def start(self) -> None:
        _settle()
        super().start()

    def stop(self) -> None:
        _settle()
        super().stop()
        self.cpu = self.wall  # what the processor did says little here


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        what: In words.
        network: Makes the model.
        batch: Makes a batch of inputs and classes.
        optimizer: Makes the optimizer, with its keywords.
        bf16: Compute in bfloat16 where autocast holds it to be safe.
        compile: Compile the model.
        channels_last: Keep images in that order.
        trainer: Further options of the Trainer, which the loop written by hand has no counterpart of.
        limit: The ratio that is not to be exceeded; None where nothing is promised.
    """

    what: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    optimizer: Callable[..., torch.optim.Optimizer]
    bf16: bool = False
    compile: bool = False
    channels_last: bool = False
    trainer: tuple[tuple[str, Any], ...] = ()
    limit: float | None = None

    def fresh(self, device: torch.device) -> nn.Module:
        """The model on its device, always with the same weights."""
        torch.manual_seed(0)
        net = self.network().to(device)
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            torch.compiler.reset()  # models of earlier rounds would count as changes of this one
            net.compile()
        return net

    def loader(self, device: torch.device, steps: int) -> Ready:
        torch.manual_seed(1)
        x, y = self.batch()
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        return Ready((x.to(device), y.to(device)), steps)


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return cross_entropy(net(x).flatten(0, -2), y.flatten())


def by_hand(work: Work, device: torch.device, steps: int) -> Contestant:
    """The loop that everybody writes."""

    def contest(clock: Clock) -> Any:
        net, loader = work.fresh(device), work.loader(device, steps)
        optimizer = work.optimizer(net.parameters())
        for epoch in range(3):
            if epoch == 1:
                clock.start()
            for batch in loader:
                with torch.autocast(device.type, torch.bfloat16, enabled=work.bf16):
                    loss = loss_of(net, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        clock.stop()
        return net.state_dict()

    return contest


def by_trainer(work: Work, framework: Framework, device: torch.device, steps: int) -> Contestant:
    """The same by ``framework``'s Trainer."""

    class Module(framework.package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return work.optimizer(self.net.parameters())

    def contest(clock: Clock) -> Any:
        class SecondOn(framework.package.Callback):  # type: ignore[misc, name-defined]
            def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                if trainer.current_epoch == 1:
                    clock.start()

            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                clock.stop()

        module = Module(work.fresh(device))
        options = {
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "devices": 1,
            "max_epochs": 3,
            "precision": "bf16-mixed" if work.bf16 else None,
            "callbacks": [SecondOn()],
            **BARE,
            **dict(work.trainer),
        }
        framework.package.Trainer(**options).fit(module, work.loader(device, steps))
        return module.net.to(device).state_dict()

    return contest


def images(samples: int, side: int, classes: int) -> Batch:
    return torch.randn(samples, 3, side, side), torch.randint(classes, (samples,))


def tokens(samples: int, length: int, kinds: int) -> Batch:
    text = torch.randint(kinds, (samples, length + 1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def vectors() -> Batch:
    return torch.randn(16, 32), torch.randint(10, (16,))


adam = functools.partial(torch.optim.Adam, lr=1e-3)
fused_adamw = functools.partial(torch.optim.AdamW, lr=3e-4, weight_decay=0.1, fused=True)
sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)

WORKS = {
    "tiny": Work("tiny MLP 32-32-10, batch 16, Adam", tiny, vectors, adam),
    # "At least 3 times the eager loop's speed"; the loop written by hand stays eager.
    "compiled": Work('the same, compile="step"', tiny, vectors, adam, trainer=(("compile", "step"),), limit=1 / 3),
    "resnet": Work(
        "ResNet-18, 128 images of 224 x 224, bf16, channels_last, SGD",
        *(resnet18, functools.partial(images, 128, 224, 1000), sgd),
        bf16=True,
        channels_last=True,
    ),
    # "At least 0.99 of the hand-written loop's speed".
    "gpt": Work(
        "GPT of 124M parameters, 8 x 1024 tokens, bf16, compiled, fused AdamW",
        *(GPT, functools.partial(tokens, 8, 1024, 50257), fused_adamw),
        bf16=True,
        compile=True,
        limit=1 / 0.99,
    ),
}


def row_of(key: str, work: Work, device: torch.device, steps: int) -> Row:
    """``work`` as a row; only without compiling must weights be equal to the last bit, and on a GPU not even then."""
    return Row(
        *(key, work.what, work.limit),
        lambda framework, _: {HAND: by_hand(work, device, steps), IT: by_trainer(work, framework, device, steps)},
        same=device.type == "cpu" and not work.compile and not work.trainer,
        needs="compile" if work.trainer else "",
        peers=not work.trainer,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORK", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--peers", action="store_true", help="measure Lightning too")
    parser.add_argument("--repeats", type=int, metavar="N", default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", default=100, help="of an epoch (default: %(default)s)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and torch sees none. benchmarks/run.py measures on the CPU.")
    run.settle(given.peers)
    device = torch.device("cuda", torch.cuda.current_device())
    rows = {key: row_of(key, work, device, given.steps) for key, work in WORKS.items()}
    lines = []
    for key in given.only:
        row = rows[key]
        if reason := row.missing():
            print(f"{key:10} passed over: {reason}")
            continue
        found = row.measure(LEYDEN, FULL, given.repeats, DeviceClock)
        peer = row.measure(LIGHTNING, FULL, min(given.repeats, 3), DeviceClock) if given.peers and row.peers else None
        lines.append(report.line(row, found, peer))
        print(f"{key:10} {lines[-1]}", flush=True)
    where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {report.conditions(given.peers)}"
    report.RESULTS.write_text(report.update(lines, where, list(rows.values()), "gpu.py"))


if __name__ == "__main__":
    main()
