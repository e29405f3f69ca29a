"""Time of one optimizer step and of clearing the gradients: Leyden's direct ways, as ratios to torch's.

    python benchmarks/optimizer_step.py [--rounds 15]

Both step the same parameters with the same gradients, on a CPU with one thread, one after the other in every round, and
must end with the same weights, to the last bit. A ratio is the median over the rounds of (direct / torch's).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from leyden.core.direct_step import DirectStep, clearing

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how to make it, and steps of a round
    "4 tensors, MLP 32-32-10": (lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 10)), 500),
    "4 tensors, MLP 784-128-10": (lambda: nn.Sequential(nn.Linear(784, 128), nn.Linear(128, 10)), 200),
    "100 tensors, 50 of 64 x 64": (lambda: nn.Sequential(*[nn.Linear(64, 64) for _ in range(50)]), 20),
    "20 tensors, 10 of 1024 x 1024": (lambda: nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(10)]), 2),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda params: SGD(params, lr=1e-3),
    "SGD, Nesterov, weight decay": lambda params: SGD(params, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": Adam,
    "AdamW": AdamW,
    "AdamW, AMSGrad": lambda params: AdamW(params, amsgrad=True),
    "Adam, fused": lambda params: Adam(params, fused=True),
}


def seconds(call: Callable[[], Any], times: int) -> float:
    """Seconds of the processor for one ``call``, the mean over ``times``."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def ratio(model: nn.Module, make: Callable[..., Any], rounds: int, times: int) -> tuple[float, float, float, float]:
    """Median, least and greatest ratio, and microseconds of torch's step."""
    twin = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    direct, plain = DirectStep(make(model.parameters())), make(twin.parameters()).step
    pairs = [(seconds(direct, times), seconds(plain, times)) for _ in range(rounds + 1)][1:]
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        if not torch.equal(ours, theirs):
            raise SystemExit("The direct step and torch's end with different weights.")
    found = [ours / theirs for ours, theirs in pairs]
    return statistics.median(found), min(found), max(found), statistics.median(theirs for _, theirs in pairs) * 1e6


def clearing_ratio(rounds: int, times: int = 2000) -> tuple[float, float, float, float]:
    """The same for clearing the gradients of 4 parameters, less the time of setting them."""
    params = [nn.Parameter(torch.ones(8)) for _ in range(4)]
    gradients = [torch.ones(8) for _ in params]
    optimizer = Adam(params)

    def after_setting(call: Callable[[], Any]) -> Callable[[], None]:
        def both() -> None:
            for parameter, gradient in zip(params, gradients, strict=True):
                parameter.grad = gradient
            call()

        return both

    contestants = [after_setting(call) for call in (clearing(optimizer), optimizer.zero_grad, lambda: None)]
    times_of = [[seconds(call, times) for call in contestants] for _ in range(rounds + 1)][1:]
    pairs = [(ours - none, theirs - none) for ours, theirs, none in times_of]
    found = [ours / theirs for ours, theirs in pairs]
    return statistics.median(found), min(found), max(found), statistics.median(theirs for _, theirs in pairs) * 1e6


def main() -> None:
    """Measure and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (default: %(default)s)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, {rounds} rounds\n")
    print("| model | optimizer | ratio | least to greatest | µs of torch's |\n|---|---|---|---|---|")
    for title, (build, times) in MODELS.items():
        for name, make in OPTIMIZERS.items():
            middle, low, high, theirs = ratio(build(), make, rounds, times)
            print(f"| {title} | {name} | **{middle:.2f}** | {low:.2f} to {high:.2f} | {theirs:.0f} |")
    middle, low, high, theirs = clearing_ratio(rounds)
    print(f"| 4 tensors | clearing | **{middle:.2f}** | {low:.2f} to {high:.2f} | {theirs:.1f} |")


if __name__ == "__main__":
    main()
