"""Random number generators, where Lightning's users look for them."""

import os

from leyden.utils.seed import SEED_VARIABLE, seed_everything
from leyden.utils.seed import isolate_rng as isolate_rng


def reset_seed(verbose: bool = True) -> None:
    """Seed everything again as ``seed_everything`` did last in this process tree; nothing if it never did.

    Args:
        verbose: Say which seed was set.
    """
    if seed := os.environ.get(SEED_VARIABLE):
        seed_everything(int(seed), verbose=verbose)
