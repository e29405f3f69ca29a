"""A bundle: one training step in a file, with everything it takes to run it again in another process."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

import torch

from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.unsafe import unsafe_places
from leyden.utils.errors import CheckpointError
from leyden.utils.hparams import plain_hyperparameters
from leyden.utils.paths import join, shown
from leyden.utils.seed import rng_state

EXTENSION = ".bundle"
FORMAT = 1


def save(run: Any, step: Any) -> str:
    """Write ``step`` of ``run``, and the weights as they are, to the run's folder; returns a sentence for people."""
    path = join(run.trainer.log_dir, f"nonfinite-step={step.position.global_step}{EXTENSION}")
    try:
        bundle = make_bundle(run, step)
        if places := unsafe_places(bundle["batch"], "batch") + unsafe_places(bundle["hyper_parameters"], "hparams"):
            return f"No bundle was written, as it holds tensors and plain values alone, and here are {places[0]}."
        run.strategy.save_checkpoint(bundle, path)
    except Exception as error:  # the loss matters more
        return f"No bundle was written: {type(error).__name__}: {error}"
    caveat = ", with the weights behind the optimizer steps that it had taken" if step.has_stepped else ""
    command = shlex.join(["leyden", "replay", shown(path), "--model", bundle["class_path"]])
    return f"To run this step again{caveat}: {command}"


def make_bundle(run: Any, step: Any) -> dict[str, Any]:
    """What a bundle holds.

    It is laid out as a checkpoint of the weights, so that ``load_from_checkpoint`` reads it.
    """
    module = run.module
    hparams, _ = plain_hyperparameters(module.hparams)
    bundle: dict[str, Any] = {
        "leyden_bundle": FORMAT,
        "state_dict": module.state_dict(),
        "hparams_name": module._hparams_name or "kwargs",
        "hyper_parameters": hparams,
        "epoch": step.position.epoch,
        "global_step": step.position.global_step,
        "position": step.position.state_dict(),
        "method": step.method,
        "batch": step.args[0],
        "batch_idx": step.position.batch,
        "indices": step.indices,
        # torch's generators as the step began, Python's and NumPy's as they are now, behind it.
        "rng": {**rng_state(), "torch": step.rng.cpu},
        "cuda_rng": step.rng.cuda,
        "training": {name: part.training for name, part in module.named_modules()},
        "accelerator": run.strategy.device.type,
        "precision": run.precision.name,
        "class_path": class_path(type(module)),
        "versions": {
            "leyden": version("leyden"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    module.on_save_checkpoint(bundle)
    return bundle


def read(path: str) -> dict[str, Any]:
    """The bundle at ``path``, on the CPU; only tensors and plain values are read.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, or not a bundle.
    """
    bundle = CheckpointIO().load_checkpoint(path, map_location="cpu")
    if not isinstance(bundle, dict) or "leyden_bundle" not in bundle:
        raise CheckpointError(f"{path} is no bundle of a training step. A stopped run names its own in its last lines.")
    if bundle["leyden_bundle"] > FORMAT:
        raise CheckpointError(f"{path} was written by a newer Leyden, {bundle['versions']['leyden']}. Install that.")
    return bundle


def class_path(cls: type) -> str:
    """Where to find ``cls``: ``module:Class``, or ``script.py:Class`` where it is defined in the script that runs."""
    module = cls.__module__
    if module == "__main__":
        script = getattr(sys.modules["__main__"], "__file__", None)
        module = module if script is None else os.path.relpath(script)
    return f"{module}:{cls.__qualname__}"
