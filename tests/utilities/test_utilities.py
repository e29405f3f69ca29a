"""leyden.utilities: what Lightning's users import from there."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import typing

import pytest
import torch
from torch import nn

import leyden.utilities
from leyden.callbacks.early_stopping import EarlyStopping
from leyden.core.module import LightningModule
from leyden.trainer import Trainer
from leyden.utilities.exceptions import MisconfigurationException, SIGTERMException
from leyden.utilities.model_summary import ModelSummary, summarize
from leyden.utilities.seed import isolate_rng, reset_seed
from leyden.utilities.types import EVAL_DATALOADERS, STEP_OUTPUT, TRAIN_DATALOADERS, OptimizerLRScheduler
from leyden.utils.seed import seed_everything
from models import TinyModel, tiny_loader


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "",
            "AttributeDict CombinedLoader GradClipAlgorithmType LightningEnum disable_possible_user_warnings "
            "find_shared_parameters grad_norm is_picklable is_shared_filesystem measure_flops move_data_to_device "
            "rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn set_shared_parameters "
            "suggested_max_num_workers",
        ),
        (".combined_loader", "CombinedLoader"),
        (".exceptions", "MisconfigurationException SIGTERMException"),
        (".grads", "grad_norm"),
        (".memory", "garbage_collection_cuda is_oom_error recursive_detach"),
        (".model_summary", "LayerSummary ModelSummary summarize"),
        (".parsing", "AttributeDict is_picklable"),
        (".rank_zero", "WarningCache rank_zero_debug rank_zero_info rank_zero_only rank_zero_warn"),
        (".seed", "isolate_rng"),
        (".throughput", "Throughput get_available_flops measure_flops"),
        (".types", "EVAL_DATALOADERS LRSchedulerConfig STEP_OUTPUT TRAIN_DATALOADERS OptimizerLRScheduler"),
    ],
)
def test_names_are_where_lightning_has_them(module, names):
    found = importlib.import_module(f"leyden.utilities{module}")
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_modules_can_be_reached_from_the_package_and_are_loaded_only_then():
    code = (
        "import json, sys, leyden.utilities as u\n"
        "before = [name for name in sys.modules if name.startswith('leyden.utilities.')]\n"
        "u.memory.garbage_collection_cuda, u.rank_zero.rank_zero_only\n"
        "print(json.dumps([before, 'leyden.core' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == [[], False]


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("leyden.utilities.upgrade_checkpoint", r"fit\(ckpt_path=\.\.\.\) read them as they are"),
        ("leyden.utilities.consolidate_checkpoint", "dcp_to_torch_save"),
        ("leyden.serve", "to_exported_program"),
    ],
)
def test_what_is_not_built_says_so(module, instead):
    with pytest.raises(ImportError, match=rf"{module} is not built yet in Leyden\..*{instead}"):
        importlib.import_module(module)


def test_a_command_that_is_not_built_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "leyden.utilities.upgrade_checkpoint", "a.ckpt"], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, "upgrade_checkpoint is not built yet" in done.stderr) == (1, True)


def test_a_sigterm_ends_the_process_with_the_status_that_shells_know():
    code = "from leyden.utilities.exceptions import SIGTERMException; raise SIGTERMException"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 143
    with pytest.raises(SystemExit):
        raise SIGTERMException


def test_the_random_numbers_of_gpus_can_be_left_out_of_what_is_kept_apart():
    torch.manual_seed(0)
    with isolate_rng(include_cuda=False):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("package", ["leyden", "leyden.loggers", "leyden.callbacks"])
def test_a_star_imports_the_public_names(package):
    namespace: dict[str, object] = {}
    exec(f"from {package} import *", namespace)
    assert {"leyden": "Trainer", "leyden.loggers": "CSVLogger", "leyden.callbacks": "ModelCheckpoint"}[
        package
    ] in namespace


def test_errors_can_be_caught_under_lightnings_name():
    with pytest.raises(MisconfigurationException):
        Trainer(accelerator="cpu", logger=False, max_epochs=-2)


@pytest.mark.parametrize("kind", [RuntimeError, MisconfigurationException])
def test_a_metric_that_nobody_logs_can_be_caught_as_lightning_raises_it_and_as_it_should(kind):
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, callbacks=[EarlyStopping("nothing")])
    with pytest.raises(kind, match="matches nothing that is logged"):
        trainer.fit(TinyModel(), tiny_loader(1))


def test_steps_can_be_annotated_with_lightnings_types():
    class Annotated(TinyModel):
        def training_step(self, batch: typing.Any, batch_idx: int) -> STEP_OUTPUT:
            return self.loss(batch)

        def configure_optimizers(self) -> OptimizerLRScheduler:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> TRAIN_DATALOADERS:
            return tiny_loader(1)

        def val_dataloader(self) -> EVAL_DATALOADERS:
            return tiny_loader(1)

    for method in ("training_step", "configure_optimizers", "train_dataloader"):
        assert "return" in typing.get_type_hints(getattr(Annotated, method))


def test_gradient_norms_can_be_logged_from_a_hook():
    class Watched(TinyModel):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.log_dict(leyden.utilities.grad_norm(self.net, norm_type=2))

    trainer = Trainer(fast_dev_run=True, accelerator="cpu", devices=1, enable_progress_bar=False)
    trainer.fit(Watched(), tiny_loader(1))
    names = {f"grad_2.0_norm/{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert set(trainer.callback_metrics) == names | {"grad_2.0_norm_total"}


def test_a_summary_can_be_made_and_read():
    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 2))
            self.example_input_array = torch.zeros(3, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    net = Net()
    summary = ModelSummary(net, max_depth=-1)
    assert str(summary) == repr(summary) == str(summarize(net, max_depth=-1))
    assert summary.layer_names == ["net", "net.0", "net.1"]
    assert summary.layer_types == ["Sequential", "Linear", "Linear"]
    assert summary.param_nums == [142, 132, 10]
    assert (summary.total_parameters, summary.trainable_parameters, summary.model_size) == (142, 142, 568 / 1e6)
    assert summary.total_flops == 2 * 3 * (32 * 4 + 4 * 2)
    with pytest.raises(ValueError, match="max_depth=-2"):
        ModelSummary(net, max_depth=-2)


def test_the_seed_can_be_set_again():
    reset_seed()  # never set: nothing happens
    seed_everything(7, verbose=False)
    first = torch.rand(3)
    with isolate_rng():
        reset_seed(verbose=False)
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(torch.rand(3), first)
    assert os.environ["LEYDEN_GLOBAL_SEED"] == "7"
