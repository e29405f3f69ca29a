"""What happens around the loops when something fails there."""

import pytest

import leyden
from leyden.utils.errors import LeydenWarning
from models import TinyModel, tiny_loader


def bare(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return leyden.Trainer(**{"max_epochs": 1, **off, **options})


class Tidies(leyden.Callback):
    def __init__(self):
        self.calls = []

    def on_exception(self, trainer, pl_module, exception):
        self.calls.append(f"on_exception {exception}")
        raise RuntimeError("on_exception failed")

    def teardown(self, trainer, pl_module, stage):
        self.calls.append(f"teardown {stage}")
        raise RuntimeError("teardown failed")


class Breaks(TinyModel):
    def training_step(self, batch, batch_idx):
        raise ValueError("the cause")


def test_what_fails_while_tidying_up_does_not_hide_the_cause():
    tidies = Tidies()
    with pytest.warns(LeydenWarning) as warned, pytest.raises(ValueError, match="the cause"):
        bare(callbacks=[tidies]).fit(Breaks(), tiny_loader())
    assert tidies.calls == ["on_exception the cause", "teardown fit"]
    messages = [str(warning.message) for warning in warned]
    assert [message.rpartition("RuntimeError: ")[2] for message in messages] == [
        "on_exception failed [LD063]",
        "teardown failed [LD063]",
    ]


def test_after_a_run_that_ends_well_a_failing_teardown_is_an_error():
    with pytest.raises(RuntimeError, match="teardown failed"):
        bare(callbacks=[Tidies()]).fit(TinyModel(), tiny_loader())


def test_after_a_run_that_ends_well_all_are_torn_down_and_the_last_error_tells_of_those_before():
    first, second, model = Tidies(), Tidies(), TinyModel()
    with pytest.raises(RuntimeError, match="teardown failed") as raised:
        bare(callbacks=[first, second]).fit(model, tiny_loader())
    assert first.calls == second.calls == ["teardown fit"]
    assert str(raised.value.__context__) == "teardown failed"
    assert raised.value.__context__.__context__ is None
    assert model._results is None  # the very last call was made as well


def test_minus_one_from_a_callback_does_not_end_the_epoch():
    class SaysStop(leyden.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            return -1

    trainer = bare(callbacks=[SaysStop()])
    trainer.fit(TinyModel(), tiny_loader(4))
    assert trainer.global_step == 4
