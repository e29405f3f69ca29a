"""Time a framework against the loop written by hand, and write the table of RESULTS.md.

    python benchmarks/run.py [--only ROW ...] [--peers] [--repeats N] [--quick] [--list]

Every row compares contestants that do the same work, in turn, in one process (or each in a fresh one, where what
happens once in a process counts), and must end with the same weights to the last bit. A figure is the median over the
rounds of (its seconds / the loop's seconds in that round), by the clock that counts the processor's work for this
process alone; the column "wall" is the same by the clock on the wall. The first round warms up and does not count.

Lightning takes part with --peers, where it is installed beside leyden (``pip install leyden[peers]``).
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import traceback
import warnings

import torch

import report
from contestants import LEYDEN, LIGHTNING
from rows import FULL, QUICK, ROWS


def main() -> None:
    """Measure, print, and write unless ``--quick``."""
    given = arguments()
    if given.list:
        print("\n".join(f"{row.key:14} {row.what}" for row in ROWS))
        return
    chosen = [row for row in ROWS if not given.only or row.key in given.only]
    settle(given.peers)
    lines, missed, failed = [], [], []
    for row in chosen:
        if reason := row.missing():
            print(f"{row.key:14} passed over: {reason}", flush=True)
            continue
        sizes, rounds = (QUICK, given.repeats or 3) if given.quick else (FULL, given.repeats)
        try:
            found = row.measure(LEYDEN, sizes, rounds)
            peer = row.measure(LIGHTNING, sizes, min(rounds or row.rounds, 3)) if given.peers and row.peers else None
        except Exception:
            traceback.print_exc()
            failed.append(row.key)
            continue
        if row.limit is not None and found.cpu.median > row.limit:
            missed.append(row.key)
        lines.append(report.line(row, found, peer))
        print(f"{row.key:14} {lines[-1]}", flush=True)
        if not given.quick:  # at once, so that a run that is broken off leaves what it has measured
            report.RESULTS.write_text(report.update(lines, report.conditions(given.peers), ROWS))
    limits = sum(line.split(" | ")[1] != "" for line in lines)
    print(f"{limits - len(missed)} of {limits} limits met; not met: {', '.join(missed) or 'none'}")
    if given.quick:
        print("RESULTS.md is as it was: --quick is too short for figures.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [row.key for row in ROWS]
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=keys, help=f"measure these alone: {', '.join(keys)}"
    )
    parser.add_argument("--peers", action="store_true", help="measure Lightning too")
    parser.add_argument("--repeats", type=int, metavar="N", help="counted rounds of every row (default: the row's own)")
    parser.add_argument("--quick", action="store_true", help="small sizes, 3 rounds; writes nothing")
    parser.add_argument("--list", action="store_true", help="list the rows")
    return parser.parse_args()


def settle(peers: bool) -> None:
    """One thread, no messages; Lightning is there if it is to take part."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("leyden").setLevel(logging.ERROR)
    if peers:
        if importlib.util.find_spec("lightning") is None:
            sys.exit("--peers needs Lightning: pip install leyden[peers]")
        LIGHTNING.package  # noqa: B018  (importing it sets the level of its logger)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
