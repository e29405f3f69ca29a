"""Checkpoints that bring code: it is never run, wherever in the file it is and however the file is read."""

from __future__ import annotations

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch.utils.data import DataLoader

from leyden import LightningModule, Trainer
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.utils.errors import CheckpointError

checkpoints = CheckpointIO()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Small(LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.layer(batch).mean())

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def loader():
    return DataLoader(torch.ones(4, 2), batch_size=2)


def trainer(tmp_path, **options):
    return Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What a Trainer saved."""
    folder = tmp_path_factory.mktemp("good")
    once = trainer(folder)
    once.fit(Small(), loader(), loader())
    once.save_checkpoint(folder / "good.ckpt")
    return torch.load(folder / "good.ckpt", weights_only=True)


# Where in a checkpoint, as a function that puts it there.
PLACES = {
    "state_dict": lambda c, p: c["state_dict"].__setitem__("layer.bias", p),
    "optimizer_states": lambda c, p: c["optimizer_states"].append(p),
    "lr_schedulers": lambda c, p: c["lr_schedulers"].append(p),
    "callbacks": lambda c, p: c.setdefault("callbacks", {}).__setitem__("ModelCheckpoint", p),
    "hyper_parameters": lambda c, p: c["hyper_parameters"].__setitem__("lr", p),
    "loops": lambda c, p: c["loops"].__setitem__("fit_loop", p),
    "a datamodule": lambda c, p: c.__setitem__("MyDataModule", p),
    "a key of the user's": lambda c, p: c.__setitem__("mine", {"deep": [p]}),
    "a key itself": lambda c, p: c.__setitem__(("a", p), 1),
}


@pytest.fixture
def flag(tmp_path):
    """What the payload makes; it is not there in the end."""
    path = tmp_path / "payload was run"
    yield path
    assert not path.exists()


def evil(good, place, flag, path, sealed):
    content = {**good, "state_dict": dict(good["state_dict"]), "hyper_parameters": dict(good["hyper_parameters"])}
    for name in ("optimizer_states", "lr_schedulers"):
        content[name] = list(content[name])
    for name in ("callbacks", "loops"):
        content[name] = dict(content.get(name, {}))
    PLACES[place](content, Payload(str(flag)))
    (checkpoints.save_checkpoint if sealed else torch.save)(content, path)
    return path


def read_open_file(path):
    with open(path, "rb") as file:
        checkpoints.load_checkpoint(file)


def read_module_from_open_file(path):
    with open(path, "rb") as file:
        Small.load_from_checkpoint(file)


def read_from_the_web(path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(path.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/{path.name}"
            with pytest.raises(CheckpointError):
                Small.load_from_checkpoint(url)
            checkpoints.load_checkpoint(url)
        finally:
            server.shutdown()
            thread.join()


READERS = {
    "path": lambda path: checkpoints.load_checkpoint(path),
    "weights_only=None": lambda path: checkpoints.load_checkpoint(path, weights_only=None),
    "open file": read_open_file,
    "web": read_from_the_web,
    "load_from_checkpoint": lambda path: Small.load_from_checkpoint(path),
    "load_from_checkpoint of an open file": read_module_from_open_file,
    "fit": lambda path: trainer(path.parent).fit(Small(), loader(), loader(), ckpt_path=path),
    "validate": lambda path: trainer(path.parent).validate(Small(), loader(), ckpt_path=path),
    "test": lambda path: trainer(path.parent).test(Small(), loader(), ckpt_path=path),
    "predict": lambda path: trainer(path.parent).predict(Small(), loader(), ckpt_path=path),
}


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_what_any_place_brings(tmp_path, good, flag, reader, sealed):
    for place in PLACES:
        path = evil(good, place, flag, tmp_path / "evil.ckpt", sealed)
        with pytest.raises(CheckpointError, match="mkdir"):
            READERS[reader](path)
        assert not flag.exists(), place


def test_a_file_of_old_torch_runs_nothing_either(tmp_path, good, flag):
    torch.save({**good, "mine": Payload(str(flag))}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="mkdir"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt")


def test_hyper_parameters_in_yaml_run_nothing(tmp_path, good, flag):
    checkpoints.save_checkpoint(good, tmp_path / "a.ckpt")
    (tmp_path / "hparams.yaml").write_text(f"lr: !!python/object/apply:os.mkdir ['{flag}']\n")
    with pytest.raises(Exception, match=r"python/object/apply:os\.mkdir"):
        Small.load_from_checkpoint(tmp_path / "a.ckpt", hparams_file=tmp_path / "hparams.yaml")


def test_a_name_in_a_checkpoint_is_imported_by_nobody(tmp_path, good, flag):
    """As of Lightning, which called what ``_instantiator`` named."""
    hparams = {"lr": 0.1, "_instantiator": "os.mkdir", "_class_path": "os.mkdir", "path": str(flag)}
    checkpoints.save_checkpoint({**good, "hyper_parameters": hparams}, tmp_path / "a.ckpt")
    assert Small.load_from_checkpoint(tmp_path / "a.ckpt").hparams.lr == 0.1


def test_the_payload_works_where_it_is_asked_for_in_writing(tmp_path, good):
    path = evil(good, "a key of the user's", tmp_path / "ran", tmp_path / "evil.ckpt", sealed=True)
    checkpoints.load_checkpoint(path, weights_only=False)
    assert (tmp_path / "ran").exists()
