"""TensorBoardLogger: what TensorBoard reads back."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

import leyden
from leyden.loggers.tensorboard import TensorBoardLogger
from leyden.utils.errors import LeydenWarning


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def scalars(folder):
    """``{tag: [(step, value), ...]}`` of a run's folder."""
    events = read(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hparams_of(folder):
    """Parameters and names of metrics in the HPARAMS tab."""
    content = read(folder).summary_metadata
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content).experiment
    params = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()
    }
    return params, [info.name.tag for info in experiment.metric_infos]


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_metrics_are_read_back_with_their_steps():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"loss": 0.5, "acc": torch.tensor(0.25)}, step=0)
    logger.log_metrics({"loss": 0.75}, step=9)
    logger.save()
    assert logger.log_dir == os.path.join("logs", "lightning_logs", "version_0")
    assert scalars(logger.log_dir) == {"loss": [(0, 0.5), (9, 0.75)], "acc": [(0, 0.25)]}


def test_metrics_that_are_logged_together_are_one_event():
    logger = TensorBoardLogger("logs")
    for step in range(3):
        logger.log_metrics({"loss": 0.5, "acc": 0.25, "epoch": 0}, step=step)
    logger.save()
    [file] = files_under(logger.log_dir)
    events = LegacyEventFileLoader(os.path.join(logger.log_dir, file)).Load()
    assert [len(event.summary.value) for event in events] == [0, 3, 3, 3]  # the first says which version it is


def test_a_mapping_of_values_shares_a_chart():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"loss": {"train": 0.5, "val": 0.75}}, step=3)
    logger.save()
    assert scalars(Path(logger.log_dir, "loss_train")) == {"loss": [(3, 0.5)]}
    assert scalars(Path(logger.log_dir, "loss_val")) == {"loss": [(3, 0.75)]}


def test_the_prefix_stands_before_every_name():
    logger = TensorBoardLogger("logs", prefix="run")
    logger.log_metrics({"x": 1.0}, step=0)
    logger.log_hyperparams({"lr": 0.5})
    logger.save()
    assert scalars(logger.log_dir) == {"run-x": [(0, 1.0)], "run-hp_metric": [(0, -1.0)]}
    assert hparams_of(logger.log_dir) == ({"lr": 0.5}, ["run-hp_metric"])


@pytest.mark.parametrize(("value", "name"), [("0.5", "loss"), (torch.ones(2), "loss"), ({"a": None}, "loss/a")])
def test_a_value_that_is_not_one_number_is_refused_by_name(value, name):
    with pytest.raises(TypeError, match=f"one number for each metric, but '{name}' is"):
        TensorBoardLogger("logs").log_metrics({"loss": value}, step=0)


def test_the_experiment_is_a_summary_writer_in_the_runs_folder():
    from torch.utils.tensorboard import SummaryWriter

    logger = TensorBoardLogger("logs", name="a", version="b", sub_dir="c")
    assert logger.log_dir == os.path.join("logs", "a", "b", "c")
    assert not Path("logs").exists()
    assert isinstance(logger.experiment, SummaryWriter)
    assert logger.experiment.log_dir == os.path.abspath(logger.log_dir)
    logger.experiment.add_text("note", "hello", 0)
    logger.save()
    assert read(logger.log_dir).Tags()["tensors"] == ["note/text_summary"]
    logger.finalize("success")


def test_home_and_environment_variables_in_sub_dir_are_replaced(monkeypatch):
    monkeypatch.setenv("FOLD", "fold_3")
    assert TensorBoardLogger("logs", sub_dir="$FOLD").log_dir.endswith(os.path.join("version_0", "fold_3"))


def test_a_run_that_logs_nothing_leaves_no_folder():
    logger = TensorBoardLogger("logs", log_graph=False)
    assert (logger.name, logger.version, logger.root_dir) == (
        "lightning_logs",
        0,
        os.path.join("logs", "lightning_logs"),
    )
    logger.log_hyperparams({})
    logger.log_metrics({}, step=0)
    logger.log_graph(nn.Linear(1, 1), torch.zeros(1, 1))
    logger.save()
    logger.after_save_checkpoint(None)
    logger.finalize("success")
    assert not Path("logs").exists()


def test_logging_goes_on_after_the_end_of_a_run():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"train_loss": 0.5}, step=9)
    writer = logger.experiment
    logger.finalize("success")
    assert scalars(logger.log_dir) == {"train_loss": [(9, 0.5)]}
    logger.log_metrics({"test_loss": 0.75}, step=9)
    logger.finalize("success")
    assert logger.experiment is writer
    assert scalars(logger.log_dir) == {"train_loss": [(9, 0.5)], "test_loss": [(9, 0.75)]}


def test_events_stay_in_one_folder_when_the_process_changes_its_own(tmp_path, monkeypatch):
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"x": 1.0}, step=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # before the writer's thread has opened the file, or after
    logger.log_hyperparams({"lr": 0.5})
    logger.finalize("success")
    logger.log_metrics({"x": 2.0}, step=1)
    logger.finalize("success")
    # Of files made in the same second the tenth of this process is read before the ninth.
    assert sorted(scalars(tmp_path / logger.log_dir)["x"]) == [(0, 1.0), (1, 2.0)]
    assert files_under(tmp_path / "elsewhere") == []


def test_a_failed_run_is_written_too():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"x": 1.0}, step=0)
    logger.finalize("failed")
    assert scalars(logger.log_dir) == {"x": [(0, 1.0)]}


# Hyper-parameters.


def test_hyperparameters_are_listed_in_the_run_itself():
    logger = TensorBoardLogger("logs", sub_dir="sub")
    logger.log_hyperparams({"lr": 0.5, "net": {"width": 3, "act": nn.ReLU()}, "sizes": [1, 2], "none": None})
    logger.save()
    params = {"lr": 0.5, "net/width": 3.0, "net/act": "ReLU()", "sizes": "[1, 2]", "none": "None"}
    assert hparams_of(logger.log_dir) == (params, ["hp_metric"])
    assert scalars(logger.log_dir) == {"hp_metric": [(0, -1.0)]}
    events, written = files_under("logs")
    assert os.path.dirname(events) == os.path.dirname(written) == os.path.join("lightning_logs", "version_0", "sub")
    assert yaml.safe_load(Path("logs", written).read_text()) == {
        "lr": 0.5,
        "net": {"width": 3, "act": "ReLU()"},
        "sizes": [1, 2],
        "none": None,
    }


def test_without_the_default_metric_the_parameters_are_listed_alone():
    logger = TensorBoardLogger("logs", default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.5})
    logger.save()
    assert hparams_of(logger.log_dir) == ({"lr": 0.5}, [])
    assert scalars(logger.log_dir) == {}


@pytest.mark.parametrize(("metrics", "tag"), [({"val_acc": 0.5}, "val_acc"), (0.5, "hp_metric")])
def test_metrics_given_with_the_parameters_take_the_place_of_the_default(metrics, tag):
    logger = TensorBoardLogger("logs")
    logger.log_hyperparams({"lr": 0.5}, metrics, step=7)
    logger.save()
    assert hparams_of(logger.log_dir) == ({"lr": 0.5}, [tag])
    assert scalars(logger.log_dir) == {tag: [(7, 0.5)]}


def test_the_default_metric_does_not_replace_a_value_that_was_logged():
    logger = TensorBoardLogger("logs")
    logger.log_hyperparams({"lr": 0.5})
    logger.log_metrics({"hp_metric": 0.75}, step=9)
    logger.log_hyperparams({"lr": 0.5})  # as trainer.test does after trainer.fit
    logger.save()
    assert scalars(logger.log_dir) == {"hp_metric": [(0, -1.0), (9, 0.75)]}


def test_later_hyperparameters_are_added_to_the_file():
    logger = TensorBoardLogger("logs")
    logger.log_hyperparams({"lr": 0.5, "seed": 1})
    logger.log_hyperparams({"lr": 0.25})
    logger.save()
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {"lr": 0.25, "seed": 1}
    assert logger.hparams == {"lr": 0.25, "seed": 1}


# The graph.


class Frozen(nn.Module):
    """A net with noise and dropout whose batch norm is frozen in eval mode."""

    def __init__(self, example=None):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 2), nn.BatchNorm1d(2).eval(), nn.Dropout()
        self.example_input_array = example

    def forward(self, x, scale=None):
        x = self.drop(self.norm(self.linear(x + torch.rand(()))))
        return {"out": x if scale is None else x * scale}


@pytest.mark.parametrize(
    "example",
    [torch.ones(3, 4), (torch.ones(3, 4), torch.ones(())), {"scale": torch.ones(()), "x": torch.ones(3, 4)}],
    ids=["tensor", "tuple", "dict"],
)
def test_the_graph_of_the_example_input_is_recorded(example):
    logger = TensorBoardLogger("logs", log_graph=True)
    logger.log_graph(Frozen(example))
    logger.save()
    nodes = [node.name for node in read_graph(logger.log_dir).node]
    assert any("Linear[linear]" in node for node in nodes)


def read_graph(folder):
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    return GraphDef.FromString(read(folder).Graph().SerializeToString())


def test_an_input_given_takes_the_place_of_the_example():
    logger = TensorBoardLogger("logs", log_graph=True)
    logger.log_graph(Frozen(torch.ones(1, 99)), torch.ones(1, 4))
    logger.save()
    assert read(logger.log_dir).Tags()["graph"]


def test_recording_the_graph_changes_neither_modes_nor_statistics_nor_random_numbers():
    model = Frozen(torch.ones(3, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    TensorBoardLogger("logs", log_graph=True).log_graph(model)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_graph_without_an_input_is_left_out_with_a_warning():
    logger = TensorBoardLogger("logs", log_graph=True)
    with pytest.warns(LeydenWarning, match=r"needs an input for Frozen\.forward.*example_input_array.*\[LD112\]"):
        logger.log_graph(Frozen())
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("example", "reason"), [(torch.ones(3, 5), "RuntimeError: mat1 and mat2"), ({"y": torch.ones(1)}, "TypeError")]
)
def test_a_graph_that_cannot_be_traced_is_left_out_with_a_warning(example, reason, capsys):
    logger = TensorBoardLogger("logs", log_graph=True)
    with pytest.warns(LeydenWarning, match=rf"The graph of Frozen cannot be recorded: {reason}"):
        logger.log_graph(Frozen(example))
    assert capsys.readouterr().out == ""


# Options, other processes and other places.


def test_options_of_the_summary_writer_are_passed_on():
    logger = TensorBoardLogger("logs", filename_suffix=".mine", max_queue=3)
    logger.log_metrics({"x": 1.0}, step=0)
    logger.save()
    assert files_under("logs")[0].endswith(".mine")
    assert logger.experiment.max_queue == 3


@pytest.mark.parametrize(
    ("option", "advice"),
    [("max_queu", "Did you mean 'max_queue'?"), ("comment", "sub_dir say where"), ("log_dir", "sub_dir say where")],
)
def test_an_option_that_would_do_nothing_is_refused(option, advice):
    with pytest.raises(TypeError, match=rf"does not take {option}=.*{advice.replace('?', '.')}"):
        TensorBoardLogger("logs", **{option: 3})


def test_a_remote_folder_is_written_and_counted_as_a_local_one():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    url = "memory://tensorboard-logger-test"
    try:
        logger = TensorBoardLogger(url)
        logger.log_hyperparams({"lr": 0.5})
        logger.log_metrics({"x": 1.0}, step=0)
        logger.finalize("success")
        assert memory.cat("/tensorboard-logger-test/lightning_logs/version_0/hparams.yaml") == b"lr: 0.5\n"
        assert scalars(logger.log_dir) == {"hp_metric": [(0, -1.0)], "x": [(0, 1.0)]}
        assert TensorBoardLogger(url).version == 1
    finally:
        memory.rm("/tensorboard-logger-test", recursive=True)


def test_other_processes_write_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger = TensorBoardLogger("logs", log_graph=True)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_graph(Frozen(torch.ones(3, 4)))
    logger.experiment.add_scalar("x", 1.0, 0)
    logger.finalize("success")
    assert not Path("logs").exists()


def test_a_pickled_logger_writes_to_the_same_folder():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"x": 1.0}, step=0)
    logger.finalize("success")
    sent = pickle.loads(pickle.dumps(logger))
    sent.log_metrics({"x": 2.0}, step=1)
    sent.finalize("success")
    assert scalars(logger.log_dir) == {"x": [(0, 1.0), (1, 2.0)]}


def test_tensorboard_is_imported_when_something_is_logged_and_not_before():
    code = """
import sys
from leyden.loggers.tensorboard import TensorBoardLogger
logger = TensorBoardLogger("logs")
assert logger.log_dir and "tensorboard" not in sys.modules
logger.log_metrics({"x": 1.0}, step=0)
assert "tensorboard" in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": str(Path(leyden.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
