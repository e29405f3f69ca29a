"""The ``leyden`` command: its subcommands and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from leyden.cli.demo import run_demo


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

    given = parser.parse_args(arguments)
    return run_demo(given.folder, given.max_epochs, given.seed, given.accelerator)


if __name__ == "__main__":
    sys.exit(main())
