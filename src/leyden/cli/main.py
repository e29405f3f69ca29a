"""The ``leyden`` command: its subcommands and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from leyden.cli.demo import run_demo
from leyden.utils.errors import CheckpointError, MisconfigurationError
from leyden.utils.lazy import LazyModule

_replay = LazyModule("leyden.cli.replay")
_verify = LazyModule("leyden.cli.verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``leyden``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="leyden", description="Train LightningModules.")
    parser.add_argument("--version", action="version", version=f"leyden {version('leyden')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train a small CNN on scanned digits, and test it; takes half a minute")
    demo.add_argument("--folder", default="logs", help="where logs and checkpoints go (default: %(default)s)")
    demo.add_argument("--max-epochs", type=int, default=30, help="epochs at most (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of data order and weights (default: %(default)s)")
    demo.add_argument("--accelerator", default="auto", help="cpu, cuda, mps or auto (default: %(default)s)")

    replay = commands.add_parser(
        "replay",
        help="run again the training step at which a run was stopped by a loss that is not finite",
        description="Exit status: 0 when the loss is not finite again, 3 when it is finite, 2 when it cannot be run.",
    )
    replay.add_argument("bundle", help="the file that the stopped run wrote, nonfinite-step=N.bundle")
    replay.add_argument("--model", help="the module's class, as train.py:Net or package.module:Net; its code runs")
    replay.add_argument("--accelerator", default="auto", help="cpu, cuda, mps or auto, the one of the run, if here")

    verify = commands.add_parser(
        "verify",
        help="try on a few steps whether a run goes on from its checkpoint as if it had not stopped",
        description="Exit status: 0 when it does, 1 when it does not, 2 when it cannot be run. The code that is named "
        "runs.",
    )
    verify.add_argument("target", help="train.py:Net or package.module:Net; or a function that gives (model, data)")
    verify.add_argument("--data", help="its data, likewise: a datamodule, or a function that gives one or loaders")
    verify.add_argument("--steps", type=int, default=4, help="optimizer steps of each run (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="seed of each run (default: %(default)s)")
    verify.add_argument("--trainer", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the Trainer")
    verify.add_argument("--trial", help=argparse.SUPPRESS)

    given = parser.parse_args(arguments)
    if given.command == "replay":
        try:
            return int(_replay.run_replay(given.bundle, given.model, given.accelerator))
        except (MisconfigurationError, CheckpointError, FileNotFoundError) as error:
            replay.error(str(error))
    if given.command == "verify":
        options = (given.target, given.data, given.trainer, given.steps, given.seed, given.trial)
        return int(_verify.run_verify(*options))
    return run_demo(given.folder, given.max_epochs, given.seed, given.accelerator)


if __name__ == "__main__":
    sys.exit(main())
