"""What is measured: every row of the table in RESULTS.md, with its limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import loops
from contestants import (
    Framework,
    by_fit,
    by_hand,
    evaluated,
    logging,
    plain,
    predicting,
    predicting_by_hand,
    showing,
    validating,
    validating_by_hand,
)
from leyden.options import TrainerOptions
from processes import importing, one_step
from timing import Clock, Contestant, Figures, take_turns

Sides = dict[str, Contestant]
Seconds = Mapping[str, float]
HAND, IT = "by hand", "with the framework"


@dataclass(frozen=True)
class Sizes:
    """How much work a round is.

    Attributes:
        steps: Training steps of the tiny model.
        batches: Of validation and prediction.
        samples: Images of an epoch.
        counts: Callbacks, or metrics, between which growth is measured.
    """

    steps: int = 1000
    batches: int = 2000
    samples: int = 60_000
    counts: tuple[int, ...] = (0, 25, 50, 100)


FULL, QUICK = Sizes(), Sizes(steps=200, batches=400, samples=6400)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: What ``--only`` takes.
        what: In words.
        unit: Of the figure; ``""`` for a ratio to the loop written by hand.
        limit: What the figure must not exceed; None where nothing is promised.
        sides: Makes the contestants.
        figure: Makes the row's figure of their seconds.
        rounds: That count.
        same: All contestants must end with equal results.
        needs: An option that the Trainer must have.
        peers: Others can take part.
    """

    key: str
    what: str
    limit: float | None
    sides: Callable[[Framework, Sizes], Sides]
    figure: Callable[[Seconds, Sizes], float] = lambda seconds, _: seconds[IT] / seconds[HAND]
    unit: str = ""
    rounds: int = 11
    same: bool = True
    needs: str = ""
    peers: bool = True

    def measure(
        self, framework: Framework, sizes: Sizes, rounds: int | None = None, clocks: type[Clock] = Clock
    ) -> Figures:
        sides = self.sides(framework, sizes)
        return take_turns(sides, lambda seconds: self.figure(seconds, sizes), rounds or self.rounds, self.same, clocks)

    def missing(self) -> str:
        """Why it cannot be measured; empty if it can."""
        if self.needs and self.needs not in {option.name for option in fields(TrainerOptions)}:
            return f"Trainer has no option {self.needs!r} yet"
        return ""


def _tiny(
    make: Callable[[Framework], Any],
    hand: Callable[..., Any] = loops.train,
    shown: str = "",
    **options: Any,
) -> Callable[[Framework, Sizes], Sides]:
    """The tiny model's training by a framework, beside ``hand``. Options that are functions get the framework."""

    def sides(framework: Framework, sizes: Sizes) -> Sides:
        loader = loops.Ready(sizes.steps)
        given = {name: value(framework) if callable(value) else value for name, value in options.items()}
        it = by_fit(lambda: make(framework), framework, loader, **given)
        if shown:
            it = showing(it, terminal=shown == "terminal")
        return {HAND: by_hand(hand, loader), IT: it}

    return sides


def _logs(metrics: int, **options: Any) -> Callable[[Framework], Any]:
    return lambda framework: logging(framework, metrics, **options)


def _logger(name: str) -> Callable[[Framework], Callable[[str], Any]]:
    return lambda framework: lambda folder: getattr(framework.loggers, name)(folder)


_EVERYTHING = {
    "logger": True,
    "enable_checkpointing": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "accelerator": "auto",
}


def _stopping(framework: Framework, sizes: Sizes) -> Sides:
    loader, held_out = loops.Ready(sizes.steps), loops.Ready(sizes.steps // 100 + 1)

    def callbacks(folder: str) -> list[Any]:
        found = framework.callbacks
        return [found.EarlyStopping("val_loss"), found.ModelCheckpoint(folder, monitor="val_loss")]

    it = by_fit(
        lambda: evaluated(framework), framework, loader, held_out, enable_checkpointing=True, callbacks=callbacks
    )
    return {HAND: by_hand(loops.train_and_validate, loader, held_out), IT: it}


def _epoch(network: Callable[[], Any], flat: bool, **options: Any) -> Callable[[Framework, Sizes], Sides]:
    def sides(framework: Framework, sizes: Sizes) -> Sides:
        loaders = loops.image_loaders(sizes.samples, flat)
        it = by_fit(lambda: evaluated(framework, network), framework, *loaders, **options)
        return {HAND: by_hand(loops.train_and_validate, *loaders, network=network), IT: it}

    return sides


def _no_op(framework: Framework) -> Any:
    class NoOp(framework.package.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, *arguments: Any) -> None:
            pass

    return NoOp()


def _with_callbacks(framework: Framework, sizes: Sizes) -> Sides:
    """Training with so many callbacks that have one empty hook of a step."""
    loader = loops.Ready(sizes.steps)
    return {
        str(count): by_fit(
            lambda: plain(framework), framework, loader, callbacks=[_no_op(framework) for _ in range(count)]
        )
        for count in sizes.counts
    }


def _with_metrics(framework: Framework, sizes: Sizes) -> Sides:
    """Training with so many metrics logged at a step."""
    loader = loops.Ready(sizes.steps)
    return {
        str(count): by_fit(lambda count=count: logging(framework, count), framework, loader) for count in sizes.counts
    }


def _twenty(seconds: Seconds, sizes: Sizes) -> float:
    """Microseconds a step that 20 add, as the most add it: 20 are too few to be seen on a busy machine."""
    least, *_, most = sorted(map(int, seconds))
    return (seconds[str(most)] - seconds[str(least)]) / (most - least) * 20 / sizes.steps * 1e6


def _growth(seconds: Seconds, sizes: Sizes) -> float:
    """Microseconds a step for each one more, by the straight line through all counts."""
    counts = [float(name) for name in seconds]
    slope, _ = statistics.linear_regression(counts, list(seconds.values()))
    return slope / sizes.steps * 1e6


def _one_step(framework: Framework, sizes: Sizes) -> Sides:
    loader = loops.Ready(1)
    return {HAND: by_hand(loops.train, loader), IT: by_fit(lambda: plain(framework), framework, loader)}


def _compiled(network: Callable[[], Any], images: bool) -> Callable[[Framework, Sizes], Sides]:
    """The second and third epoch, when everything is compiled."""

    def sides(framework: Framework, sizes: Sizes) -> Sides:
        loader: Any = loops.image_loaders(sizes.samples, flat=True)[0] if images else loops.Ready(sizes.steps)

        def hand(clock: Clock) -> None:
            ends = iter((clock.start, lambda: None, clock.stop))
            loops.train_epochs(network(), loader, 3, lambda: next(ends)())

        def it(clock: Clock) -> None:
            class SecondOn(framework.package.Callback):  # type: ignore[misc, name-defined]
                def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                    if trainer.current_epoch == 0:
                        clock.start()
                    elif trainer.current_epoch == 2:
                        clock.stop()

            by_fit(
                lambda: plain(framework, network),
                *(framework, loader),
                **{"max_epochs": 3, "compile": "step", "callbacks": [SecondOn()]},
            )(Clock())

        return {HAND: hand, IT: it}

    return sides


_FIVE = {"on_step": True, "on_epoch": True}

ROWS = [
    Row("plain", "nothing logged", 0.75, _tiny(plain)),
    Row(
        "slow", "nothing logged, fast paths off", 1.04, _tiny(plain, fast_paths=False), needs="fast_paths", peers=False
    ),
    Row("log", "one `self.log`", 0.80, _tiny(_logs(1))),
    Row("five", "five `self.log` by step and epoch", 1.0, _tiny(_logs(5, **_FIVE))),
    Row("ten", "10 metrics", 1.0, _tiny(_logs(10))),
    Row("hundred", "100 metrics", 2.0, _tiny(_logs(100)), rounds=7),
    Row("csv", "CSV logger, one metric", 0.85, _tiny(_logs(1), logger=_logger("CSVLogger"))),
    Row("tensorboard", "TensorBoard logger, one metric", 0.85, _tiny(_logs(1), logger=_logger("TensorBoardLogger"))),
    Row("terminal", "progress bar on a terminal", 0.85, _tiny(plain, shown="terminal", enable_progress_bar=True)),
    Row("pipe", "progress bar in a pipe", 0.85, _tiny(plain, shown="pipe", enable_progress_bar=True)),
    Row("default", "everything default, one `self.log`", 0.9, _tiny(_logs(1), shown="pipe", **_EVERYTHING)),
    Row("stopping", "EarlyStopping and ModelCheckpoint, with a short validation", None, _stopping),
    Row("clipping", "gradients clipped by norm", 0.85, _tiny(plain, loops.train_clipped, gradient_clip_val=1.0)),
    Row(
        *("accumulation", "gradients accumulated over 4 batches", 0.95),
        _tiny(plain, loops.train_accumulating, accumulate_grad_batches=4),
    ),
    Row(
        *("validation", "validation with one `self.log`, a batch", 1.35),
        lambda framework, sizes: {
            HAND: validating_by_hand(loader := loops.Ready(sizes.batches)),
            IT: validating(framework, loader),
        },
    ),
    Row(
        *("predict", "prediction, a batch", 1.35),
        lambda framework, sizes: {
            HAND: predicting_by_hand(loader := loops.Ready(sizes.batches)),
            IT: predicting(framework, loader),
        },
    ),
    Row(
        *("fit", "`fit` of one step, over the loop", 1.0, _one_step),
        **{"unit": "ms", "rounds": 31, "figure": lambda seconds, _: (seconds[IT] - seconds[HAND]) * 1e3},
    ),
    Row(
        *("callbacks", "20 no-op callbacks, a step", 10.0),
        lambda framework, sizes: _with_callbacks(framework, replace(sizes, counts=(0, max(sizes.counts)))),
        **{"unit": "µs", "figure": _twenty},
    ),
    Row("hook", "each callback hook, a step", 0.5, _with_callbacks, _growth, unit="µs"),
    Row("metric", "each metric, a step", 2.0, _with_metrics, _growth, unit="µs", rounds=7),
    Row("mlp", "MLP 784-128-10 on 60,000 images: epoch with validation", 0.66, _epoch(loops.mlp, True), rounds=5),
    Row("cnn", "a small CNN on the same", 0.82, _epoch(loops.cnn, False), rounds=3),
    Row(
        *("import", "import over `import torch`", 0.1, lambda framework, _: {IT: importing(framework.name)}),
        **{"unit": "s", "rounds": 5, "figure": lambda seconds, _: seconds[IT]},
    ),
    Row(
        *("process", "process of one step, start to exit", None),
        lambda framework, _: {HAND: one_step("by-hand"), IT: one_step(framework.name)},
        rounds=5,
    ),
    Row(
        *("compiled", 'nothing logged, `compile="step"`, once compiled', 0.30, _compiled(loops.tiny, False)),
        **{"same": False, "needs": "compile", "peers": False},
    ),
    Row(
        *("compiled-mlp", 'the MLP, `compile="step"`, once compiled', 0.55, _compiled(loops.mlp, True)),
        **{"same": False, "needs": "compile", "peers": False, "rounds": 3},
    ),
]
