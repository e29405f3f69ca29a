"""``leyden replay``: run the one training step of a bundle again, and show what every submodule put out."""

from __future__ import annotations

from typing import Any

import torch

from leyden.cli.target import find_target
from leyden.core.bundle import read
from leyden.core.finite import Outputs, RngState, losses_in
from leyden.core.lifecycle import prepare
from leyden.core.module import LightningModule
from leyden.core.state import Fn, Stage
from leyden.fabric.accelerators import available_accelerators
from leyden.trainer import Trainer
from leyden.utils.errors import MisconfigurationError
from leyden.utils.seed import set_rng_state
from leyden.utils.table import draw_table

REPRODUCED, NOT_REPRODUCED = 0, 3


def run_replay(path: str, model: str | None, accelerator: str = "auto") -> int:
    """Run the step in the bundle at ``path`` again, and print its loss and the outputs of the submodules.

    Args:
        path: The bundle.
        model: The module's class, as ``train.py:Net`` or ``package.module:Net``. A bundle may come from anywhere, so
            nothing that it names is imported; what it names is only shown.
        accelerator: ``"cpu"``, ``"cuda"``, ``"mps"``; ``"auto"`` is the one of the run, if it is here, else the CPU.

    Returns:
        0 when the loss is not finite again, 3 when it is finite.

    Raises:
        MisconfigurationError: ``model`` is missing, or is not a LightningModule.
    """
    bundle = read(path)
    if model is None:
        raise MisconfigurationError(
            f"{path} is of a model that says it is {bundle['class_path']}. If that is your code, which will run: "
            f"leyden replay {path} --model {bundle['class_path']}"
        )
    cls = find_class(model)
    if accelerator == "auto":
        accelerator = bundle["accelerator"] if bundle["accelerator"] in available_accelerators() else "cpu"
    module = cls.load_from_checkpoint(path, map_location="cpu")
    print(
        f"{path}: epoch {bundle['epoch']}, batch {bundle['batch_idx']}, global step {bundle['global_step']}; "
        f"{bundle['precision']} on {bundle['accelerator']}; " + _versions(bundle)
    )
    outputs, losses = _run_step(bundle, module, accelerator)
    print(_table_of(outputs))
    shown = ", ".join(str(value) for value in losses) or "none"
    print(f"Loss: {shown}")
    if all(torch.isfinite(torch.tensor(value)) for value in losses):
        print("It is finite here, so what went wrong is not reproduced.")
        return NOT_REPRODUCED
    first = outputs.first_not_finite()
    if first is None:
        print(f"The outputs of all submodules are finite: it arises in {bundle['method']}() itself.")
    else:
        print(f"The first output that is not finite is that of {first.told()}.")
    return REPRODUCED


def find_class(spec: str) -> Any:
    """The LightningModule class that ``train.py:Net`` or ``package.module:Net`` means.

    Raises:
        MisconfigurationError: There is no such file, module or class, or it is no LightningModule.
    """
    found = find_target(spec, "--model")
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise MisconfigurationError(f"--model {spec} is not a LightningModule class.")
    return found


class _Found(Exception):
    """A loss that is not finite came to backward, as in manual optimization."""


def _run_step(bundle: dict[str, Any], module: Any, accelerator: str) -> tuple[Outputs, list[float]]:
    """Run the step; returns what the submodules put out, and the losses."""
    position = bundle["position"]
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=bundle["precision"],
        max_epochs=position["epoch"] + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        on_nonfinite_loss="ignore",
    )
    trainer.state.position.load_state_dict(position)
    run = trainer._make_run(Fn.FIT, module, {"train": ([bundle["batch"]], "the bundle")}, None)
    run.strategy.setup_environment()
    prepare(run)
    run.place_module()
    module.load_state_dict(bundle["state_dict"])  # once more, as they have their number type only now
    run.prepare_training()
    run.load_training_data()
    run.state.stage = Stage.TRAIN
    run.results.enter(Stage.TRAIN)
    run.results.hook = "training_step"
    for name, part in module.named_modules():
        part.training = bundle["training"].get(name, part.training)

    losses: list[float] = []
    propagate = run.backward

    def backward(loss: torch.Tensor, *args: Any, **options: Any) -> None:
        losses.append(float(loss.detach()))
        if not torch.isfinite(loss.detach()).all():
            raise _Found
        propagate(loss, *args, **options)

    run.backward = backward
    step, takes_index = run.training_step, run.step_takes_index
    for turn in run.turns:
        if turn.name and bundle["method"] == f"training_step_{turn.name}":
            step, takes_index = turn.step, turn.step_takes_index
    transfer = run._transfer
    batch = bundle["batch"] if transfer is None else module.transfer_batch_to_device(bundle["batch"], module.device, 0)
    run.results.begin_batch(batch)
    outputs = Outputs()
    set_rng_state(bundle["rng"])
    RngState(bundle["rng"]["torch"], bundle["cuda_rng"] if accelerator == "cuda" else None).put_back(module.device)
    with torch.enable_grad(), outputs.recorded(module):
        try:
            result = step(batch, bundle["batch_idx"]) if takes_index else step(batch)
            if module.automatic_optimization:
                losses += [float(loss) for loss in losses_in(result)]
        except _Found:
            pass
    return outputs, losses


def _table_of(outputs: Outputs) -> str:
    rows = [
        [
            output.name or "(the module)",
            output.kind,
            str(output.calls),
            *(f"{value:.4g}" if abs(value) != float("inf") else "" for value in (output.least, output.greatest)),
            f"{output.not_finite} of {output.numbers}",
        ]
        for output in outputs.table.values()
    ]
    return draw_table(["submodule", "class", "calls", "least", "greatest", "not finite"], rows)


def _versions(bundle: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in bundle["versions"].items())
