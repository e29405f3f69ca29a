"""ModelSummary: what is printed when fit starts."""

from __future__ import annotations

import pytest
import torch

from leyden.callbacks.model_summary import ModelSummary
from leyden.trainer import Trainer
from leyden.utils.summary import summarize
from models import FEATURES, TinyModel, tiny_loader


def fit(model: TinyModel, *callbacks: ModelSummary) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet).fit(model, tiny_loader(2))


def test_it_is_printed_once_before_training(capsys):
    class Watching(TinyModel):
        def on_train_start(self):
            self.printed = capsys.readouterr().out

    model = Watching()
    fit(model)
    assert model.printed == f"{summarize(model)}\n"
    assert "│ net  │ Sequential │      1,386 │ train │" in model.printed
    assert capsys.readouterr().out == ""


def test_it_goes_as_deep_as_asked_and_shows_sizes(capsys):
    model = TinyModel()
    model.example_input_array = torch.zeros(3, FEATURES)
    fit(model, ModelSummary(max_depth=-1))
    assert "│ net.2 │     Linear │        330 │ train │ 1,920 │ [3, 32] │ [3, 10] │" in capsys.readouterr().out


def test_training_is_the_same_with_it_and_without_it():
    def trained(*callbacks):
        torch.manual_seed(1)
        model = TinyModel()
        model.example_input_array = torch.zeros(3, FEATURES)
        model.net.insert(1, torch.nn.Dropout(0.5))
        fit(model, *callbacks)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(trained(ModelSummary(0)), trained(ModelSummary(-1)))


def test_only_rank_zero_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    fit(TinyModel(), ModelSummary())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("max_depth", "error"), [(-2, ValueError), ("1", TypeError)])
def test_other_depths_are_refused_at_once(max_depth, error):
    with pytest.raises(error, match="max_depth="):
        ModelSummary(max_depth)
