"""PyTorchProfiler: which batches are recorded, the trace, and the table."""

from __future__ import annotations

import json

import pytest
import torch

from leyden.profilers.torch import PyTorchProfiler
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader


def fit(profiler, model=None, *loaders):
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", profiler=profiler, **bare)
    trainer.fit(model or TinyModel(), *(loaders or [tiny_loader(6)]))
    return trainer


def regions(path):
    """How often each region is in a trace."""
    names = [e["name"] for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "user_annotation"]
    return {name: names.count(name) for name in names}


def test_three_batches_are_recorded_behind_one_and_a_warm_up(tmp_path):
    fit(PyTorchProfiler(tmp_path))
    (trace,) = tmp_path.glob("*.json")
    assert trace.name == "fit.0.pt.trace.json"
    found = regions(trace)
    assert found["training_step"] == found["backward"] == found["optimizer_step"] == 3
    assert {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"} <= set(found)
    assert found["[nn.Module]net.0: Linear"] == 3


def test_layers_can_be_left_out_and_are_let_go(tmp_path):
    model = TinyModel()
    fit(PyTorchProfiler(tmp_path, record_module_names=False), model)
    assert not any("nn.Module" in name for name in regions(tmp_path / "fit.0.pt.trace.json"))
    fit(PyTorchProfiler(tmp_path), model)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_validation_and_sanity_check_are_no_batches_of_the_schedule(tmp_path):
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    fit(PyTorchProfiler(tmp_path, schedule=schedule), ValidatedModel(), tiny_loader(2), tiny_loader(2))
    found = regions(tmp_path / "fit.0.pt.trace.json")
    assert found["training_step"] == 1
    assert found["run_validation_batch"] == 2


def test_without_a_schedule_every_batch_is_recorded(tmp_path):
    fit(PyTorchProfiler(tmp_path, schedule=None), TinyModel(), tiny_loader(1))
    assert regions(tmp_path / "fit.0.pt.trace.json")["training_step"] == 1


def test_a_schedule_that_repeats_writes_several_traces(tmp_path):
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1)
    seen = []
    fit(PyTorchProfiler(tmp_path, "twice", schedule=schedule, on_trace_ready=seen.append, acc_events=True))
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == [
        f"fit-twice.{number}.pt.trace.json" for number in range(3)
    ]
    assert len(seen) == 3


def test_the_table_is_printed_or_written(tmp_path, capsys):
    fit(PyTorchProfiler(export_to_chrome=False, row_limit=5, sort_by_key="cpu_time"))
    printed = capsys.readouterr().out
    assert printed.startswith("PyTorchProfiler, fit\n")
    assert "ProfilerStep*" in printed
    fit(PyTorchProfiler(tmp_path, "ops", export_to_chrome=False, group_by_input_shapes=True))
    assert "Input Shapes" in (tmp_path / "fit-ops.txt").read_text()
    assert list(tmp_path.glob("*.json")) == []


def test_a_run_too_short_for_its_schedule_says_so(tmp_path):
    with pytest.warns(LeydenWarning, match=r"recorded nothing: the run ended after 1 batches.*\[LD200\]"):
        fit(PyTorchProfiler(tmp_path), TinyModel(), tiny_loader(1))


def test_a_failed_run_lets_go_of_torchs_profiler(tmp_path):
    class Failing(TinyModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("no more")
            return self.loss(batch)

    with pytest.raises(RuntimeError, match="no more"):
        fit(PyTorchProfiler(tmp_path), Failing())
    fit(PyTorchProfiler(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort_by_key": "cpu_tmie"}, "sort_by_key='cpu_tmie'.*Did you mean 'cpu_time'"),
        ({"profile_memroy": True}, "'profile_memroy'.*Did you mean 'profile_memory'"),
        ({"table_kwargs": {"row_limit": 3}}, "table_kwargs.*'row_limit'"),
        ({"schedule": 3}, r"schedule=3\) is no schedule"),
        ({"schedule": lambda step: step}, "is no schedule"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(MisconfigurationError, match=message):
        PyTorchProfiler(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_nvtx_without_cuda_is_refused():
    with pytest.raises(MisconfigurationError, match=r"emit_nvtx=True.*needs CUDA"):
        PyTorchProfiler(emit_nvtx=True)


def test_stopping_what_has_not_started_is_refused():
    profiler = PyTorchProfiler(export_to_chrome=False)
    profiler.setup("fit")
    try:
        with pytest.raises(ValueError, match=r"stop\('x'\): it has not started"):
            profiler.stop("x")
    finally:
        profiler.teardown()
