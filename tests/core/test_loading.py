"""load_from_checkpoint: a module or datamodule made again from a file."""

import io
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import leyden
from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from leyden.utils.errors import CheckpointError, LeydenWarning, MisconfigurationError
from models import TinyModel, tiny_loader

pytestmark = pytest.mark.filterwarnings("ignore:.*LD281")  # layers that are only there to be saved

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Wide(TinyModel):
    """A model whose layers depend on its arguments."""

    def __init__(self, width, lr=0.1, activation="relu"):
        super().__init__(lr=lr)
        self.save_hyperparameters()
        self.extra = nn.Linear(width, 1)


class Whole(TinyModel):
    """A model that takes its hyper-parameters as one object."""

    def __init__(self, conf, seed=0):
        super().__init__(seed=seed)
        self.save_hyperparameters(conf)
        self.extra = nn.Linear(self.hparams.width, 1)
        self.given = seed


def saved(model, path="saved.ckpt", datamodule=None):
    """Train ``model`` for a step and save it; returns the path."""
    trainer = leyden.Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    if datamodule is None:
        trainer.fit(model, tiny_loader(1))
    else:
        trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(path)
    return path


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# Hyper-parameters.


def test_the_module_is_made_with_its_hyperparameters_and_gets_its_weights():
    model = Wide(5, lr=0.3)
    again = Wide.load_from_checkpoint(saved(model))
    assert again.hparams == {"width": 5, "lr": 0.3, "activation": "relu"}
    assert again.lr == 0.3
    assert_same_weights(model, again)
    assert again.training


def test_given_arguments_win():
    again = Wide.load_from_checkpoint(saved(Wide(5, lr=0.3)), lr=0.7)
    assert again.hparams == {"width": 5, "lr": 0.7, "activation": "relu"}


def test_an_argument_that_does_not_exist_is_refused_with_the_nearest():
    path = saved(Wide(5))
    with pytest.raises(TypeError, match=r"takes no argument 'widht'.*Did you mean 'width'"):
        Wide.load_from_checkpoint(path, widht=4)


def test_ignored_arguments_are_given_by_the_caller():
    class Around(TinyModel):
        def __init__(self, backbone, lr=0.1):
            super().__init__(lr=lr)
            self.save_hyperparameters(ignore="backbone")
            self.backbone = backbone

    model = Around(nn.Linear(2, 2), lr=0.4)
    path = saved(model)
    again = Around.load_from_checkpoint(path, backbone=nn.Linear(2, 2))
    assert again.lr == 0.4
    assert_same_weights(model, again)
    with pytest.raises(
        TypeError,
        match=r"Around.__init__ needs backbone, which saved.ckpt does not hold. "
        r"Pass it: Around.load_from_checkpoint\(path, backbone=...\)",
    ):
        Around.load_from_checkpoint(path)


def test_without_saved_hyperparameters_the_error_says_how_to_save_them():
    class Forgets(TinyModel):
        def __init__(self, width):
            super().__init__()

    path = saved(Forgets(3))
    with pytest.raises(TypeError, match=r"call self.save_hyperparameters\(\) in __init__"):
        Forgets.load_from_checkpoint(path)
    assert Forgets.load_from_checkpoint(path, width=3)


@dataclass
class Conf:
    width: int
    lr: float


@pytest.mark.parametrize("conf", [{"width": 4, "lr": 0.1}, Namespace(width=4, lr=0.1), Conf(4, 0.1)])
def test_one_object_is_given_whole_with_dots_for_its_items(conf):
    model = Whole(conf, seed=2)
    again = Whole.load_from_checkpoint(saved(model))
    assert again.hparams == {"width": 4, "lr": 0.1}
    assert again.given == 0
    assert_same_weights(model, again)


def test_items_of_the_one_object_may_be_replaced_and_other_arguments_given():
    path = saved(Whole({"width": 4, "lr": 0.1}))
    again = Whole.load_from_checkpoint(path, lr=0.9, seed=3)
    assert again.hparams == {"width": 4, "lr": 0.9}
    assert again.given == 3
    with pytest.raises(TypeError, match="takes no argument 'depth'"):
        Whole.load_from_checkpoint(path, depth=3)


def test_a_class_that_takes_the_items_by_name_gets_them_so():
    class ByName(TinyModel):
        def __init__(self, width, lr):
            super().__init__(lr=lr)
            self.extra = nn.Linear(width, 1)

    assert ByName.load_from_checkpoint(saved(Whole({"width": 4, "lr": 0.1}))).lr == 0.1


def test_the_old_way_to_set_hyperparameters_saves_them_too():
    class Old(TinyModel):
        def __init__(self, hparams):
            super().__init__()
            self.hparams = hparams
            self.extra = nn.Linear(self.hparams.width, 1)

    model = Old(Namespace(width=3))
    again = Old.load_from_checkpoint(saved(model))
    assert again.hparams == {"width": 3}
    assert_same_weights(model, again)


def test_a_parent_reads_what_its_child_saved():
    class Child(Wide):
        def __init__(self, depth=2, **kwargs):
            super().__init__(**kwargs)
            self.save_hyperparameters()

    path = saved(Child(depth=4, width=5, lr=0.2))
    assert Child.load_from_checkpoint(path).hparams["depth"] == 4
    assert Wide.load_from_checkpoint(path).lr == 0.2


def test_layers_that_are_made_late_are_there_before_the_weights():
    class Late(TinyModel):
        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = nn.Linear(2, 2)

    model = Late()
    path = saved(model)
    assert_same_weights(model, Late.load_from_checkpoint(path))


def test_the_modules_own_hook_sees_the_file_first():
    class Renamed(Wide):
        def on_load_checkpoint(self, checkpoint):
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name.replace("old.", "net."): value for name, value in state.items()}

    model = Renamed(5)
    path = saved(model)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name.replace("net.", "old."): v for name, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    assert_same_weights(model, Renamed.load_from_checkpoint(path))


def test_on_an_instance_it_is_refused_since_the_instance_would_stay_as_it_is():
    model = Wide(5)
    path = saved(model)
    with pytest.raises(TypeError, match=r"called on an instance.*Write model = Wide.load_from_checkpoint\(path\)"):
        model.load_from_checkpoint(path)
    with pytest.raises(TypeError, match="called on an instance"):
        Data(4).load_from_checkpoint(path)


# Weights that do not fit.


class Narrow(TinyModel):
    """Wide without its extra layer."""


def test_weights_that_do_not_fit_are_an_error_that_names_them():
    path = saved(Wide(5))
    with pytest.raises(CheckpointError, match=r"(?s)weights in saved.ckpt do not fit Narrow.*extra.weight"):
        Narrow.load_from_checkpoint(path)


def test_not_strictly_they_are_a_warning_that_names_them():
    with pytest.warns(LeydenWarning, match=r"unexpected: \['extra.weight', 'extra.bias'\].*LD042"):
        Narrow.load_from_checkpoint(saved(Wide(5)), strict=False)


def test_the_modules_own_strictness_holds_unless_told():
    class Lenient(Narrow):
        strict_loading = False

    path = saved(Wide(5))
    with pytest.warns(LeydenWarning, match="LD042"):
        Lenient.load_from_checkpoint(path)
    with pytest.raises(CheckpointError):
        Lenient.load_from_checkpoint(path, strict=True)


def test_a_shape_that_does_not_fit_is_an_error_even_when_not_strict():
    path = saved(Wide(5))
    with pytest.raises(CheckpointError, match=r"size mismatch for extra\.weight"):
        Wide.load_from_checkpoint(path, strict=False, width=6)


# Files.


def test_an_open_file_is_read():
    model = Wide(5)
    with open(saved(model), "rb") as file:
        assert_same_weights(model, Wide.load_from_checkpoint(file))
    assert_same_weights(model, Wide.load_from_checkpoint(io.BytesIO(Path("saved.ckpt").read_bytes())))
    assert_same_weights(model, Wide.load_from_checkpoint(Path("saved.ckpt")))


def test_a_file_of_bare_weights_is_refused_with_how_to_load_it():
    torch.save(TinyModel().state_dict(), "bare.pt")
    with pytest.raises(CheckpointError, match=r"bare.pt is not a checkpoint of a Trainer.*model.load_state_dict"):
        TinyModel.load_from_checkpoint("bare.pt")


def test_a_missing_file_is_named_with_its_neighbours():
    saved(Wide(5))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint savd.ckpt. Beside it: saved.ckpt"):
        Wide.load_from_checkpoint("savd.ckpt")


def test_objects_are_read_only_when_asked_for():
    class Odd(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = Path("x")

    with pytest.warns(LeydenWarning, match="LD040"):
        path = saved(Odd())
    with pytest.raises(CheckpointError, match=r"pathlib.*weights_only=False"):
        Odd.load_from_checkpoint(path)
    assert isinstance(Odd.load_from_checkpoint(path, weights_only=False), Odd)


@pytest.mark.parametrize("form", ["yaml", "yml", "csv"])
def test_hyperparameters_may_come_from_a_file(form):
    lines = {"csv": "key,value\nwidth,5\nlr,0.25\n"}.get(form, "width: 5\nlr: 0.25\n")
    Path(f"hparams.{form}").write_text(lines)
    again = Wide.load_from_checkpoint(saved(Wide(5, lr=0.3)), hparams_file=f"hparams.{form}")
    assert again.lr == 0.25


def test_other_hyperparameter_files_are_refused():
    path = saved(Wide(5))
    with pytest.raises(MisconfigurationError, match=r"hparams_file='hparams.json' must end in .yaml, .yml or .csv"):
        Wide.load_from_checkpoint(path, hparams_file="hparams.json")


# Devices.


@pytest.mark.parametrize(
    "map_location", [None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, _: storage]
)
def test_weights_go_where_map_location_says(map_location):
    assert Wide.load_from_checkpoint(saved(Wide(5)), map_location=map_location).device.type == "cpu"


def test_weights_of_a_device_that_is_not_here_come_onto_the_cpu(monkeypatch):
    model = Wide(5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:63")
        saved(model)
    again = Wide.load_from_checkpoint("saved.ckpt")
    assert again.device.type == "cpu"
    assert_same_weights(model, again)


@pytest.mark.gpu
def test_the_module_goes_where_its_weights_go():
    path = saved(Wide(5))
    assert Wide.load_from_checkpoint(path, map_location="cuda").device == torch.device("cuda:0")
    trainer = leyden.Trainer(max_steps=1, accelerator="cuda", devices=1, **QUIET)

    class Saves(Wide):
        def on_train_batch_end(self, *args):
            self.trainer.save_checkpoint("cuda.ckpt")

    trainer.fit(Saves(5), tiny_loader(1))
    assert Wide.load_from_checkpoint("cuda.ckpt").device == torch.device("cuda:0")
    assert Wide.load_from_checkpoint("cuda.ckpt", map_location="cpu").device.type == "cpu"


# Datamodules.


class Data(LightningDataModule):
    def __init__(self, batches, seed=0):
        super().__init__()
        self.save_hyperparameters()
        self.epochs = 0

    def train_dataloader(self):
        self.epochs += 1
        return tiny_loader(self.hparams.batches, seed=self.hparams.seed)

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict):
        self.epochs = state_dict["epochs"]


def test_a_datamodule_is_made_with_its_hyperparameters_and_gets_its_state():
    again = Data.load_from_checkpoint(saved(TinyModel(), datamodule=Data(2, seed=3)))
    assert again.hparams == {"batches": 2, "seed": 3}
    assert again.epochs == 1


def test_a_datamodules_arguments_may_be_replaced_or_come_from_a_file():
    path = saved(TinyModel(), datamodule=Data(2))
    assert Data.load_from_checkpoint(path, seed=9).hparams == {"batches": 2, "seed": 9}
    Path("hparams.yaml").write_text("batches: 4\n")
    assert Data.load_from_checkpoint(path, hparams_file="hparams.yaml").hparams == {"batches": 4, "seed": 0}


def test_a_datamodules_missing_argument_is_named():
    class Needs(Data):
        def __init__(self, folder, batches):
            super().__init__(batches)
            self.folder = folder

    path = saved(TinyModel(), datamodule=Data(2))
    with pytest.raises(TypeError, match=r"Needs.__init__ needs folder"):
        Needs.load_from_checkpoint(path)


def test_module_and_datamodule_keep_their_hyperparameters_apart():
    path = saved(Wide(5, lr=0.2), datamodule=Data(2))
    assert Wide.load_from_checkpoint(path).hparams == {"width": 5, "lr": 0.2, "activation": "relu"}
    assert Data.load_from_checkpoint(path).hparams == {"batches": 2, "seed": 0}


def test_a_module_without_hyperparameters_needs_none():
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

    torch.save({"state_dict": Plain().state_dict()}, "weights.ckpt")
    assert Plain.load_from_checkpoint("weights.ckpt").hparams == {}
