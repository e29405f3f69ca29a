"""Time of a training step, as a ratio to the hand-written loop of the same run.

    python benchmarks/steps.py [--rounds 7] [--steps 1000] [--write]

Every contestant trains the same tiny model (MLP 32-32-10, batch 16, Adam) on the same ready batches, one round after
another in turn, so that all of them meet the same moods of the machine. The first round warms up and does not count.
A ratio is the median over the rounds of (its time / the hand-written loop's time in that round). All of them must end
with the same weights, to the last bit, or the benchmark fails. Lightning takes part where it is installed
(``pip install leyden[peers]``).
"""

from __future__ import annotations

import argparse
import datetime
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leyden

RESULTS = Path(__file__).parent / "RESULTS.md"


class Batches:
    """The data: ready batches of 16 samples of shape (32,) and their classes, as a loader that costs nothing."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(16, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
            for _ in range(steps)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def network() -> nn.Module:
    """The model, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def by_hand(batches: Batches) -> nn.Module:
    """The loop that everybody writes."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in batches:
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def module_of(framework: Any, logs: int, **options: Any) -> Any:
    """The same as a LightningModule of ``framework``, which calls ``self.log`` so many times a step."""

    class Tiny(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            for index in range(logs):
                self.log(f"loss_{index}", loss, **options)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    return Tiny()


def by(
    framework: Any, logs: int = 0, trainer: dict[str, Any] | None = None, **options: Any
) -> Callable[[Batches], Any]:
    """A contestant: ``framework`` with ``logs`` logged values a step, and nothing else switched on."""
    bare = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    def train(batches: Batches) -> nn.Module:
        module = module_of(framework, logs, **options)
        with tempfile.TemporaryDirectory() as folder:
            given = {"max_epochs": 1, "default_root_dir": folder, **bare, **(trainer or {})}
            framework.Trainer(**given).fit(module, batches)
        net: nn.Module = module.net
        return net

    return train


def contestants() -> dict[str, Callable[[Batches], nn.Module]]:
    """Who takes part, by name."""
    both = {"on_step": True, "on_epoch": True}
    everything = {
        "logger": True,
        "enable_checkpointing": True,
        "enable_progress_bar": True,
        "enable_model_summary": True,
    }
    frameworks: dict[str, Any] = {"leyden": leyden}
    try:
        import lightning.pytorch

        frameworks["lightning"] = lightning.pytorch
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    except ImportError:
        pass
    found: dict[str, Callable[[Batches], nn.Module]] = {"by hand": by_hand}
    for name, framework in frameworks.items():
        found[f"{name}, nothing logged"] = by(framework)
        found[f"{name}, one self.log"] = by(framework, 1)
        found[f"{name}, five by step and epoch"] = by(framework, 5, **both)
        found[f"{name}, one log, all defaults on, in a pipe"] = by(framework, 1, everything)
    return found


def measure(steps: int, rounds: int) -> dict[str, tuple[float, float, float, float]]:
    """For every contestant: microseconds a step, and the median, least and greatest ratio."""
    batches = Batches(steps)
    reference = by_hand(batches).state_dict()
    times: dict[str, list[float]] = {name: [] for name in contestants()}
    for _ in range(rounds + 1):
        for name, train in contestants().items():
            start = time.perf_counter()
            net = train(batches)
            times[name].append(time.perf_counter() - start)
            for key, weight in net.state_dict().items():
                if not torch.equal(weight, reference[key]):
                    raise SystemExit(f"{name}: {key} differs from the hand-written loop's")
    base = times["by hand"][1:]
    found = {}
    for name, seconds in times.items():
        ratios = [ours / hand for ours, hand in zip(seconds[1:], base, strict=True)]
        median = statistics.median(seconds[1:]) / steps * 1e6
        found[name] = (median, statistics.median(ratios), min(ratios), max(ratios))
    return found


def table(found: dict[str, tuple[float, float, float, float]]) -> str:
    """The results in Markdown."""
    lines = ["| step of the tiny MLP | ratio | least to greatest | µs a step |", "|---|---|---|---|"]
    lines += [
        f"| {name} | **{r:.2f}** | {low:.2f} to {high:.2f} | {us:.0f} |" for name, (us, r, low, high) in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and with ``--write`` put the table into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each round (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("leyden").setLevel(logging.ERROR)
    found = table(measure(given.steps, given.rounds))
    print(found)
    if given.write:
        write(found, given)


def write(found: str, given: argparse.Namespace) -> None:
    """Put ``found`` between the marks of its section."""
    begin, end = "<!-- steps.py -->", "<!-- /steps.py -->"
    text = RESULTS.read_text()
    where = (
        f"{datetime.date.today()}, torch {torch.__version__}, Python {platform.python_version()}, one thread, "
        f"{given.rounds} rounds of {given.steps} steps, equal final weights."
    )
    before, _, rest = text.partition(begin)
    RESULTS.write_text(f"{before}{begin}\n{where}\n\n{found}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
