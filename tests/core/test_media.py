"""self.log of images, figures, audio, text, histograms and tables: what goes where, when, and how it is kept."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import leyden
from leyden.core.callback import Callback
from leyden.loggers import CSVLogger, TensorBoardLogger
from leyden.loggers.logger import Logger
from leyden.loggers.media import Audio, Figure, Histogram, Image, Media, Table, Text
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, tiny_loader

PIL = pytest.importorskip("PIL.Image")  # a decoder that is not ours

RED = torch.zeros(3, 2, 5)
RED[0] = 1.0


class Drawing:
    """What matplotlib's figures have and is used of them."""

    def savefig(self, file, format):
        assert format == "png"
        file.write(Image(RED).encoded(""))


class Kept(Logger):
    """Keeps the media it is sent, in order."""

    def __init__(self):
        self.sent = []

    def log_media(self, name, media, step=None):
        self.sent.append((step, name, media.text))


class Says(TinyModel):
    """Logs what a test wants, where it wants: ``says={"training_step": said(module, batch_idx)}``."""

    def __init__(self, **says):
        super().__init__()
        self.says = says

    def training_step(self, batch, batch_idx):
        self.say("training_step", batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.say("validation_step", batch_idx)

    def on_validation_epoch_end(self):
        self.say("on_validation_epoch_end", 0)

    def on_train_epoch_end(self):
        self.say("on_train_epoch_end", 0)

    def say(self, place, batch_idx):
        if place in self.says:
            self.says[place](self, batch_idx)


def fitted(model, logger, batches=4, epochs=1, every=1, val=None, **options):
    trainer = leyden.Trainer(
        **{"max_epochs": epochs, "log_every_n_steps": every, "limit_train_batches": batches, "logger": logger}
        | {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        | ({} if val else {"limit_val_batches": 0})
        | options
    )
    trainer.fit(model, tiny_loader(), val or tiny_loader())
    return trainer


def told(batches=4, epochs=1, every=1, val=None, **says):
    kept = Kept()
    fitted(Says(**says), kept, batches, epochs, every, val)
    return kept.sent


def pixels(data):
    return numpy.asarray(PIL.open(io.BytesIO(data)))


def decoded(image):
    return pixels(Image(image).encoded("x"))


def samples(data):
    with wave.open(io.BytesIO(data)) as file:
        frames = numpy.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return file.getframerate(), frames.reshape(-1, file.getnchannels()).T.tolist()


# When it goes out.


def test_in_training_the_latest_goes_out_at_every_nth_step():
    sent = told(5, every=2, training_step=lambda module, index: module.log("t", Text(f"batch {index}")))
    assert sent == [(1, "t", "batch 1"), (3, "t", "batch 3")]


def test_what_was_logged_since_the_last_due_step_goes_out_once_in_the_next_epoch_too():
    def seldom(module, index):
        if index == 2 and module.current_epoch == 0:
            module.log("t", Text("once"))

    assert told(3, epochs=3, every=2, training_step=seldom) == [(3, "t", "once")]


def test_by_epoch_the_last_of_the_epoch_goes_out():
    def every_batch(module, index):
        module.log("t", Text(f"epoch {module.current_epoch} batch {index}"), on_step=False, on_epoch=True)

    assert told(3, epochs=2, training_step=every_batch) == [(2, "t", "epoch 0 batch 2"), (5, "t", "epoch 1 batch 2")]


def test_validation_sends_the_last_of_every_name_once_and_the_sanity_check_nothing():
    sent = told(
        2,
        epochs=2,
        val=tiny_loader(),
        validation_step=lambda module, index: module.log("val/t", Text(f"{index}")),
        on_validation_epoch_end=lambda module, _: module.log("val/end", Text("end")),
    )
    last = str(len(tiny_loader()) - 1)
    assert sent == [(1, "val/t", last), (1, "val/end", "end"), (3, "val/t", last), (3, "val/end", "end")]


def test_with_several_loaders_each_has_its_name():
    sent = told(1, val=[tiny_loader()] * 2, validation_step=lambda module, _: module.log("t", Text("x")))
    assert [name for _, name, _ in sent] == ["t/dataloader_idx_0", "t/dataloader_idx_1"]


def test_validation_within_an_epoch_leaves_what_training_logged_for_the_next_due_step():
    kept = Kept()
    model = Says(training_step=lambda module, index: module.log("t", Text(f"batch {index}")))
    fitted(model, kept, 4, every=4, val=tiny_loader(), val_check_interval=1)
    assert kept.sent == [(3, "t", "batch 3")]


def test_epoch_hooks_and_callbacks_may_log_it():
    class Writes(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.log("callback", Text("c"))

    kept = Kept()
    model = Says(on_train_epoch_end=lambda module, _: module.log("module", Text("m")))
    fitted(model, kept, 2, callbacks=[Writes()])
    assert sorted(kept.sent) == [(1, "callback", "c"), (1, "module", "m")]


def test_validate_alone_sends_it_too():
    kept = Kept()
    model = Says(validation_step=lambda module, _: module.log("t", Text("x")))
    leyden.Trainer(logger=kept, enable_progress_bar=False).validate(model, tiny_loader(), verbose=False)
    assert kept.sent == [(0, "t", "x")]


def test_only_loggers_get_it():
    def both(module, _):
        module.log("t", Text("x"))
        module.log("loss", 1.0)

    trainer = fitted(Says(training_step=both), Kept())
    assert set(trainer.callback_metrics) == set(trainer.logged_metrics) == {"loss"}
    assert trainer.progress_bar_metrics == {}


def test_without_loggers_it_goes_nowhere():
    fitted(Says(training_step=lambda module, _: module.log("t", Text("x"))), False)


def test_it_is_kept_as_it_was_when_it_was_logged(tmp_path):
    def log(module, index):
        values = torch.full((4,), float(index))
        module.log("h", Histogram(values, bins=1))
        values.fill_(100.0)

    logger = CSVLogger(tmp_path, name="", version="")
    fitted(Says(training_step=log), logger, 2, every=2)
    edges = json.loads((tmp_path / "media" / "h" / "step_1.json").read_text())["edges"]
    assert edges[0] <= 1.0 <= edges[1] < 100.0


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prog_bar": True}, r"self\.log\('t', Text, prog_bar=True\): only loggers"),
        ({"logger": False}, "logger=False"),
        ({"reduce_fx": "max"}, "reduce_fx='max'.*cannot be reduced"),
        ({"on_step": True, "on_epoch": True}, "choose on_step=True"),
        ({"on_step": False, "on_epoch": False}, "would log nothing"),
    ],
)
def test_options_for_numbers_are_refused(options, message):
    with pytest.raises(MisconfigurationError, match=message):
        told(training_step=lambda module, _: module.log("t", Text("x"), **options))


def test_by_step_in_validation_is_refused():
    with pytest.raises(MisconfigurationError, match="training only"):
        told(val=tiny_loader(), validation_step=lambda module, _: module.log("t", Text("x"), on_step=True))


def test_plain_text_is_refused_and_the_error_names_what_takes_it():
    with pytest.raises(ValueError, match=r"got str: 'hello'.*leyden\.loggers\.media has Text"):
        told(training_step=lambda module, _: module.log("t", "hello"))


def test_a_number_and_an_image_cannot_share_a_name_at_one_place():
    def log(module, _):
        module.log("x", 1.0)
        module.log("x", Image(RED))

    with pytest.raises(ValueError, match=r"got Image.*a name that no number has"):
        told(training_step=log)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Image(torch.zeros(8, 3, 4, 4)), ValueError, r"\(8, 3, 4, 4\).*images\[0\]"),
        (lambda: Image(torch.zeros(2, 4, 5)), ValueError, "1, 3 or 4 channels"),
        (lambda: Image(torch.zeros(3, 0, 4)), ValueError, r"\(0, 4, 3\)"),
        (lambda: Image(RED, layout="HWC"), ValueError, r"\(3, 2, 5\), layout='HWC'"),
        (lambda: Image(RED, layout="CWH"), ValueError, "Did you mean 'CHW'"),
        (lambda: Image(torch.zeros(4, 4, dtype=torch.int64)), TypeError, "uint8.*int64"),
        (lambda: Image("cat.png"), TypeError, "a tensor or an array, got str"),
        (lambda: Figure(3), TypeError, "matplotlib figure, got int"),
        (lambda: Audio(torch.zeros(100, 2), 8000), ValueError, r"\(channels, samples\).*\(100, 2\)"),
        (lambda: Audio(torch.zeros(100), 8000.5), ValueError, "sample_rate=8000.5"),
        (lambda: Audio(torch.zeros(9, dtype=torch.int64), 8000), TypeError, "int64"),
        (lambda: Text(3), TypeError, "takes a str, got int"),
        (lambda: Histogram(torch.zeros(0)), ValueError, "got none"),
        (lambda: Histogram(torch.zeros(2), bins=0), ValueError, "bins=0"),
        (lambda: Histogram(torch.zeros(2, dtype=torch.complex64)), TypeError, "complex64"),
        (lambda: Table(["a", "b"], [[1, 2], [3]]), ValueError, "row 1 has 1 cells.*2 columns"),
        (lambda: Table(["a"], [[torch.zeros(3)]]), TypeError, "a cell is text"),
    ],
)
def test_values_are_checked_when_they_are_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Files.


def test_a_logger_that_cannot_show_it_has_files_in_the_run_folder(tmp_path):
    def log(module, _):
        module.log("val/image", Image(RED))
        module.log("figure", Drawing())
        module.log("sound", Audio(torch.tensor([0.0, 1.0, -1.0]), 8000))
        module.log("words", Text("Grüße"))
        module.log("weights", Histogram(torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4))
        module.log("wrong", Table(["word", "score"], [["a|b", 0.5], [None, torch.tensor(2)]]))

    logger = CSVLogger(tmp_path, name="", version="")
    fitted(Says(training_step=log), logger, 2, every=2)
    folder = tmp_path / "media"
    assert pixels((folder / "val" / "image" / "step_1.png").read_bytes()).tolist() == [[[255, 0, 0]] * 5] * 2
    assert pixels((folder / "figure" / "step_1.png").read_bytes()).shape == (2, 5, 3)
    assert samples((folder / "sound" / "step_1.wav").read_bytes()) == (8000, [[0, 32767, -32767]])
    assert (folder / "words" / "step_1.txt").read_text("utf-8") == "Grüße"
    assert json.loads((folder / "weights" / "step_1.json").read_text()) == {
        "edges": [0.0, 1.0, 2.0, 3.0, 4.0],
        "counts": [1, 2, 0, 1],
    }
    with open(folder / "wrong" / "step_1.csv", newline="") as file:
        assert list(csv.reader(file)) == [["word", "score"], ["a|b", "0.5"], ["", "2"]]
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 6


def test_names_stay_inside_the_media_folder(tmp_path):
    path = Text("x").write(str(tmp_path / "run"), "../../a:b\\c/./d", 3)
    assert Path(path) == tmp_path / "run" / "media" / "a_b_c" / "d" / "step_3.txt"


def test_files_go_to_remote_folders_too():
    import fsspec

    Text("x").write("memory://media_test", "a/b", 1)
    assert fsspec.filesystem("memory").cat("/media_test/media/a/b/step_1.txt") == b"x"


def test_the_prefix_is_put_before_the_name(tmp_path):
    CSVLogger(tmp_path, name="", version="", prefix="p").log_media("a/b", Text("x"), 1)
    assert (tmp_path / "media" / "p-a" / "b" / "step_1.txt").exists()


def test_a_logger_without_a_folder_says_that_it_leaves_it_out():
    with pytest.warns(LeydenWarning, match=r"Logger has no folder.*'t'.*Logger\.log_media.*\[LD213\]"):
        Logger().log_media("t", Text("x"), 0)


def test_fast_dev_run_writes_nothing(tmp_path):
    model = Says(training_step=lambda module, _: module.log("t", Text("x")))
    fitted(model, CSVLogger(tmp_path), None, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


# TensorBoard.


def test_tensorboard_shows_each_in_its_own_way_while_another_logger_writes_files(tmp_path):
    def log(module, _):
        module.log("image", Image(RED))
        module.log("figure", Drawing())
        module.log("sound", Audio(torch.tensor([[0.0, 1.0], [0.5, -1.0]]), 8000))
        module.log("words", Text("some *words*"))
        module.log("weights", Histogram(module.net[0].weight))
        module.log("wrong", Table(["word", "score"], [["a|b", 0.5]]))
        module.log("loss", 1.0)

    board, files = TensorBoardLogger(tmp_path / "tb", default_hp_metric=False), CSVLogger(tmp_path / "csv")
    fitted(Says(training_step=log), [board, files], 4, every=2)
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0, "images": 0, "audio": 0, "histograms": 0})
    events.Reload()
    assert [event.step for event in events.Images("image")] == [1, 3]
    for tag in ("image", "figure"):
        image = events.Images(tag)[0]
        assert (image.width, image.height) == (5, 2)
        assert pixels(image.encoded_image_string).tolist() == [[[255, 0, 0]] * 5] * 2
    sound = events.Audio("sound")[0]
    assert (sound.sample_rate, sound.length_frames, sound.content_type) == (8000, 2, "audio/wav")
    assert samples(sound.encoded_audio_string) == (8000, [[0, 32767], [16384, -32767]])
    assert events.Histograms("weights")[0].histogram_value.num == 32 * 32
    texts = {tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0] for tag in ("words", "wrong")}
    assert texts == {"words": b"some *words*", "wrong": b"| word | score |\n| --- | --- |\n| a\\|b | 0.5 |"}
    assert [event.value for event in events.Scalars("loss")] == [1.0, 1.0]
    written = sorted(path.parent.name for path in Path(files.log_dir, "media").rglob("step_3.*"))
    assert written == ["figure", "image", "sound", "weights", "words", "wrong"]
    assert not Path(board.log_dir, "media").exists()


def test_tensorboard_writes_a_file_for_a_kind_it_does_not_know(tmp_path):
    class Cloud(Media):
        suffix = ".xyz"

        def encoded(self, name):
            return b"0 0 0"

    logger = TensorBoardLogger(tmp_path, name="", version="")
    logger.log_media("cloud", Cloud(), 2)
    assert (tmp_path / "media" / "cloud" / "step_2.xyz").read_bytes() == b"0 0 0"


# Encodings.


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED.permute(1, 2, 0),
        (RED * 255).to(torch.uint8),
        RED.bool(),
        RED.to(torch.bfloat16),
        RED.double().requires_grad_(),
        RED.numpy(),
        PIL.fromarray(numpy.uint8(RED.permute(1, 2, 0).numpy() * 255)),
        PIL.fromarray(numpy.uint8(RED.permute(1, 2, 0).numpy() * 255)).convert("P"),
    ],
    ids=["CHW", "HWC", "uint8", "bool", "bfloat16", "needs grad", "numpy", "PIL", "PIL palette"],
)
def test_an_image_is_kept_to_the_pixel(image):
    assert decoded(image).tolist() == [[[255, 0, 0]] * 5] * 2


@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (7, 5, 1), (3, 7, 5), (7, 5, 4)])
def test_grey_rgb_and_rgba_survive_the_way_through_a_png(shape):
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    wanted = image.permute(1, 2, 0) if shape[0] == 3 else image
    assert decoded(image).tolist() == wanted.squeeze().tolist()


def test_the_layout_can_be_said_where_the_shape_leaves_it_open():
    image = torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8)
    assert decoded(image).tolist() == image.permute(1, 2, 0).tolist()
    assert pixels(Image(image, layout="HWC").encoded("x")).tolist() == image.tolist()


def test_pixels_out_of_range_are_cut_off_with_a_warning():
    with pytest.warns(LeydenWarning, match=r"'x' has values from -1 to 255.*\[LD210\]"):
        assert decoded(torch.tensor([[-1.0, 0.5, 255.0]])).tolist() == [[0, 128, 255]]


def test_sound_out_of_range_is_cut_off_with_a_warning():
    with pytest.warns(LeydenWarning, match=r"'x'.*\.abs\(\)\.max\(\).*\[LD211\]"):
        data = Audio([2.0, float("nan")], 100).encoded("x")
    assert samples(data) == (100, [[32767, 0]])


def test_int16_sound_is_kept_as_it_is():
    assert samples(Audio(numpy.array([[1, -2], [3, 4]], dtype="int16"), 100).encoded("x")) == (100, [[1, -2], [3, 4]])


def test_a_histogram_leaves_out_what_is_not_finite_with_a_warning(tmp_path):
    histogram = Histogram(torch.tensor([[1.0, float("nan")], [float("inf"), 3.0]]), bins=2)
    with pytest.warns(LeydenWarning, match=r"'x' leaves out 2 of 4 .*\[LD212\]"):
        assert json.loads(histogram.encoded("x")) == {"edges": [1.0, 2.0, 3.0], "counts": [1, 1]}


def test_a_histogram_of_nothing_finite_is_empty(tmp_path):
    histogram = Histogram(torch.tensor([float("nan")]))
    with pytest.warns(LeydenWarning, match="LD212"):
        assert json.loads(histogram.encoded("x")) == {"edges": [], "counts": []}
    TensorBoardLogger(tmp_path).log_media("x", histogram, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_histogram_takes_any_real_type(dtype):
    counts = json.loads(Histogram(torch.tensor([0, 1, 1], dtype=dtype), bins=2).encoded("x"))["counts"]
    assert counts == [1, 2]


@pytest.mark.gpu
def test_values_stay_on_their_device_until_they_go_out():
    image, sound, values = Image(RED.cuda()), Audio(torch.zeros(9).cuda(), 100), Histogram(torch.ones(9).cuda())
    assert image.pixels.is_cuda and sound.samples.is_cuda and values.values.is_cuda
    assert pixels(image.encoded("x")).shape == (2, 5, 3)
    assert sound.encoded("x") and values.encoded("x")


def test_making_a_value_never_waits_for_the_device():
    meta = torch.zeros(3, 4, 4, device="meta")  # reading a meta tensor's value would raise
    assert Image(meta).pixels.is_meta
    assert Histogram(meta).values.is_meta
    assert Audio(meta[0], 100).samples.is_meta


def test_a_module_whose_attributes_are_asked_for_is_no_figure():
    with pytest.raises(ValueError, match="got Linear"):
        told(training_step=lambda module, _: module.log("x", nn.Linear(1, 1)))


def test_media_are_loaded_when_they_are_used():
    code = "import sys, leyden; leyden.Trainer; print('leyden.loggers.media' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"
    assert leyden.loggers.media.Image is Image
