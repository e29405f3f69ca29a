"""What a failure is called, and what is left after it: checkpoints, tidy callbacks, no processes."""

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

import leyden
from leyden.core.faults import DataLoaderWorkerError, explain_worker_death
from leyden.loggers.logger import Logger
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """torch looks more often than every 5 s whether its workers are alive, and waits less for their end."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    yield
    gc.collect()  # iterators whose workers are still there


def bare(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return leyden.Trainer(**{"max_epochs": 3, **off, **options})


def notes_of(run):
    """The notes on the error that ``run`` ends with."""
    with pytest.raises(RuntimeError, match="the cause") as caught:
        run()
    return caught.value.__notes__


def broken(base, hook, when=lambda owner: True):
    """A class whose ``hook`` fails where ``when`` says so, and else does what ``base`` does."""

    def breaks(self, *args, **kwargs):
        if when(self):
            raise RuntimeError("the cause")
        return getattr(super(cls, self), hook)(*args, **kwargs)

    breaks.__name__ = hook
    breaks.__code__ = breaks.__code__.replace(co_name=hook)
    cls = type("Broken", (base,), {hook: breaks})
    return cls


def in_second_epoch(owner):
    return owner.trainer.current_epoch == 1 and owner.trainer.global_step >= 6


# Where it happened.


class Model(ValidatedModel):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("training_step", "epoch 1, batch 2, step 6."),
        ("on_train_batch_start", "epoch 1, batch 2, step 6."),
        ("on_train_batch_end", "epoch 1, batch 1, step 6."),
        ("on_before_optimizer_step", "epoch 1, batch 2, step 6."),
        ("on_train_epoch_end", "epoch 1, step 8."),
        ("validation_step", "epoch 1, validate batch 0, step 8."),
        ("on_validation_batch_end", "epoch 1, validate batch 0, step 8."),
        ("on_validation_epoch_start", "epoch 1, step 8."),
    ],
)
def test_an_error_in_a_hook_says_whose_where_and_when(hook, place):
    model = broken(Model, hook, in_second_epoch)()
    assert notes_of(lambda: bare().fit(model, tiny_loader(), tiny_loader(2))) == [f"In Broken.{hook}, {place}"]


@pytest.mark.parametrize(
    "hook", ["configure_optimizers", "prepare_data", "setup", "configure_model", "train_dataloader"]
)
def test_before_the_loop_there_is_no_epoch(hook):
    model = broken(Model, hook)()
    loader = None if hook == "train_dataloader" else tiny_loader()
    notes = notes_of(lambda: bare(num_sanity_val_steps=0, limit_val_batches=0).fit(model, loader))
    assert [note.split(",")[0].rstrip(".") for note in notes] == [f"In Broken.{hook}"]


def test_in_the_sanity_check():
    notes = notes_of(lambda: bare().fit(broken(Model, "validation_step")(), tiny_loader(), tiny_loader()))
    assert notes == ["In Broken.validation_step, epoch 0, sanity check batch 0, step 0."]


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_alone_has_batches_and_no_epoch(method):
    step = {"validate": "validation"}.get(method, method) + "_step"
    model = broken(Model, step)()
    assert notes_of(lambda: getattr(bare(), method)(model, tiny_loader())) == [f"In Broken.{step}, {method} batch 0."]


def test_of_several_loaders_the_right_one_is_named():
    class OfTwo(Model):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            if (batch_idx, dataloader_idx) == (1, 1):
                raise RuntimeError("the cause")

    notes = notes_of(lambda: bare().validate(OfTwo(), [tiny_loader(2), tiny_loader(3)]))
    assert notes == ["In OfTwo.validation_step, validate batch 1 of dataloader 1."]


class Watches(leyden.Callback):
    pass


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_batch_end", "on_validation_end", "on_fit_end"])
def test_an_error_in_a_callback_names_it(hook):
    callback = broken(Watches, hook)()
    notes = notes_of(lambda: bare(callbacks=[Watches(), callback]).fit(Model(), tiny_loader(), tiny_loader()))
    assert len(notes) == 1
    assert notes[0].startswith(f"In Broken.{hook}")


def test_a_hook_of_the_datamodule_is_named():
    class Data(leyden.LightningDataModule):
        def train_dataloader(self):
            return tiny_loader()

    data = broken(Data, "on_after_batch_transfer")()
    notes = notes_of(lambda: bare().fit(TinyModel(), datamodule=data))
    assert notes == ["In Broken.on_after_batch_transfer, epoch 0, batch 0, step 0."]


def test_the_innermost_hook_is_named():
    class Saves(leyden.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint("never.ckpt")

    callback = broken(Watches, "on_save_checkpoint")()
    notes = notes_of(lambda: bare(callbacks=[Saves(), callback]).fit(TinyModel(), tiny_loader()))
    assert notes == ["In Broken.on_save_checkpoint, epoch 0, batch 0, step 1."]


def test_a_step_inside_of_a_closure_is_named():
    class Steps(broken(TinyModel, "training_step")):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    assert notes_of(lambda: bare().fit(Steps(), tiny_loader())) == ["In Steps.training_step, epoch 0, batch 0, step 0."]


def test_what_a_hook_calls_is_not_named():
    class Helps(leyden.Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.help()

        def help(self):
            raise RuntimeError("the cause")

    notes = notes_of(lambda: bare(callbacks=[Helps()]).fit(TinyModel(), tiny_loader()))
    assert notes == ["In Helps.on_train_batch_end, epoch 0, batch 0, step 1."]


def test_an_error_outside_of_hooks_has_epoch_batch_and_step():
    class Refuses(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("the cause")

    class Model(TinyModel):
        def configure_optimizers(self):
            return Refuses(self.parameters(), lr=0.1)

    notes = notes_of(lambda: bare().fit(Model(), tiny_loader()))
    assert len(notes) == 1
    assert notes[0].endswith(", epoch 0, batch 0, step 0.")


class Samples(Dataset):
    """16 samples a batch, of which one, ``bad``, does something."""

    def __init__(self, bad, does, batches=8):
        self.data, self.bad, self.does = tiny_data(16 * batches), bad, does

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index == self.bad:
            self.does()
        return self.data[index]


def fails():
    raise RuntimeError("the cause")


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_a_batch_has_a_place_too(workers):
    loader = DataLoader(Samples(16 * 3, fails), 16, num_workers=workers)
    assert notes_of(lambda: bare().fit(TinyModel(), loader)) == ["In reading a batch, epoch 0, batch 3, step 3."]


def test_reading_a_batch_of_validation_has_its_own_count():
    loader = DataLoader(Samples(16 * 3, fails), 16)
    notes = notes_of(lambda: bare(num_sanity_val_steps=0).fit(Model(), tiny_loader(2), loader))
    assert notes == ["In reading a batch, epoch 0, validate batch 3, step 2."]


def test_a_fit_inside_of_a_fit_adds_no_second_note():
    class Outer(leyden.Callback):
        def on_train_start(self, trainer, pl_module):
            bare().fit(broken(TinyModel, "training_step")(), tiny_loader())

    notes = notes_of(lambda: bare(callbacks=[Outer()]).fit(TinyModel(), tiny_loader()))
    assert notes == ["In Broken.training_step, epoch 0, batch 0, step 0."]


def test_errors_before_the_run_and_stops_have_no_note():
    with pytest.raises(ValueError, match="has no training_step") as caught:
        bare().fit(leyden.LightningModule(), tiny_loader())
    assert not hasattr(caught.value, "__notes__")

    class Stops(TinyModel):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        bare().fit(Stops(), tiny_loader())
    assert not hasattr(stopped.value, "__notes__")


def test_python_3_10_which_shows_no_notes_gets_a_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    notes = notes_of(lambda: bare().fit(broken(TinyModel, "training_step")(), tiny_loader()))
    assert notes == ["In Broken.training_step, epoch 0, batch 0, step 0."]
    assert "RuntimeError: In Broken.training_step, epoch 0, batch 0, step 0.\n" in capsys.readouterr().err


def test_the_traceback_ends_at_the_users_line_and_has_few_frames_of_ours():
    with pytest.raises(RuntimeError) as caught:
        bare(callbacks=[broken(Watches, "on_train_batch_end")()]).fit(TinyModel(), tiny_loader())
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].filename == __file__ and frames[-1].line == 'raise RuntimeError("the cause")'
    ours = [frame for frame in frames if frame.filename.startswith(str(Path(leyden.__file__).parent))]
    assert len(ours) <= 8, ours


# Everybody tidies up, once.


class Tidy:
    """Counts what it is told at the end, and fails there too."""

    log = None

    def teardown(self, *args, **kwargs):
        self.log.append(f"{type(self).__name__}.teardown")
        raise OSError("teardown failed")

    def on_exception(self, *args):
        self.log.append(f"{type(self).__name__}.on_exception")
        raise OSError("on_exception failed")


class One(Tidy, leyden.Callback):
    pass


class Two(Tidy, leyden.Callback):
    pass


class TidyData(Tidy, leyden.LightningDataModule):
    def train_dataloader(self):
        return tiny_loader()

    def val_dataloader(self):
        return tiny_loader(2)


class TidyModel(Model):
    log_ = None

    def teardown(self, stage):
        self.log_.append("TidyModel.teardown")
        raise OSError("teardown failed")


PHASES = [
    ("datamodule", "prepare_data"),
    ("datamodule", "setup"),
    ("callback", "setup"),
    ("model", "setup"),
    ("model", "configure_model"),
    ("model", "configure_optimizers"),
    ("callback", "on_fit_start"),
    ("datamodule", "train_dataloader"),
    ("datamodule", "on_after_batch_transfer"),
    ("model", "training_step"),
    ("callback", "on_train_batch_end"),
    ("model", "validation_step"),
    ("callback", "on_save_checkpoint"),
    ("callback", "on_fit_end"),
]


@pytest.mark.parametrize(("who", "hook"), PHASES)
def test_everybody_tidies_up_once_whatever_fails(who, hook, tmp_path):
    bases = {"datamodule": TidyData, "callback": One, "model": TidyModel}
    made = {name: (broken(base, hook) if name == who else base)() for name, base in bases.items()}
    calls: list[str] = []
    made["callback"].log = made["datamodule"].log = made["model"].log_ = calls
    last = Two()
    last.log = calls
    saves = leyden.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1)
    trainer = bare(callbacks=[made["callback"], last, saves], enable_checkpointing=True)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="the cause"):
            trainer.fit(made["model"], datamodule=made["datamodule"])
    names = [call.replace(type(made[who]).__name__, bases[who].__name__) for call in calls]
    assert names == [
        "One.on_exception",
        "Two.on_exception",
        "TidyData.on_exception",
        "TidyData.teardown",
        "One.teardown",
        "Two.teardown",
        "TidyModel.teardown",
    ]


def test_a_callback_that_ends_the_process_is_heard_when_everybody_has_tidied_up():
    class Exits(leyden.Callback):
        def on_exception(self, trainer, pl_module, exception):
            sys.exit(3)

    last = Two()
    last.log = []
    with pytest.raises(SystemExit) as ended:
        bare(callbacks=[Exits(), last]).fit(broken(TinyModel, "training_step")(), tiny_loader())
    assert ended.value.code == 3
    assert last.log == ["Two.on_exception", "Two.teardown"]
    assert str(ended.value.__context__) == "the cause"


def test_warnings_that_are_errors_do_not_hide_the_cause():
    last = Two()
    last.log = []
    with pytest.raises(RuntimeError, match="the cause"):
        bare(callbacks=[last], warnings={"LD063": "error"}).fit(broken(TinyModel, "training_step")(), tiny_loader())
    assert last.log == ["Two.on_exception", "Two.teardown"]


# Workers.


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    os.kill(os.getpid(), signal.SIGSEGV)


def out_of_shared_memory():
    os.kill(os.getpid(), signal.SIGBUS)


def exits():
    os._exit(3)


def hangs():
    time.sleep(60)


def error_of(loader):
    """The class of what reading ``loader`` raises, and what is made of it."""
    try:
        for _ in loader:
            pass
    except Exception as error:
        return type(error), explain_worker_death(error, loader, "train_dataloader()")
    raise AssertionError("nothing was raised")


def worker_in(message):
    """The number and process id in a message."""
    start = message.index("worker ")
    words = message[start:].replace("(", "").replace(")", "").split()
    return int(words[1]), int(words[5])


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (killed, "was killed by SIGKILL, probably because memory ran out. Each of the 2 workers"),
        (crashed, "crashed with SIGSEGV, in the native code"),
        (out_of_shared_memory, "was killed by SIGBUS, probably because shared memory, /dev/shm, is full"),
        (exits, "ended by itself with exit code 3: something in it called sys.exit() or os._exit()"),
    ],
)
@pytest.mark.parametrize("persistent", [False, True])
def test_a_dead_worker_is_named_with_what_ended_it(does, says, persistent):
    loader = DataLoader(Samples(16 * 3, does), 16, num_workers=2, persistent_workers=persistent)  # batch 3: worker 1
    _, explained = error_of(loader)
    assert isinstance(explained, DataLoaderWorkerError)
    message = str(explained)
    assert message.startswith("train_dataloader(): worker 1 of 2 (pid ")
    assert says in message
    assert worker_in(message)[1] != os.getpid()


def test_a_worker_that_hangs_is_named():
    loader = DataLoader(Samples(16 * 2, hangs), 16, num_workers=2, timeout=1)  # batch 2: worker 0
    _, explained = error_of(loader)
    message = str(explained)
    assert "train_dataloader(): worker 0 of 2 (pid " in message
    assert "gave no batch for 1 seconds" in message
    assert f"py-spy dump --pid {worker_in(message)[1]}" in message


@pytest.mark.parametrize("error", [RuntimeError, EOFError, ConnectionResetError, OSError])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_dataset_needs_no_explanation(error, workers):
    def raises():
        raise error("of the dataset")

    raised, explained = error_of(DataLoader(Samples(16, raises), 16, num_workers=workers))
    assert raised is error
    assert explained is None


def test_the_workers_of_another_loader_are_not_blamed():
    loader = DataLoader(Samples(16, killed), 16, num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert explain_worker_death(caught.value, tiny_loader(num_workers=1), "val_dataloader()") is None
    assert explain_worker_death(caught.value, loader, "train_dataloader()") is not None


def test_a_worker_that_dies_while_the_model_works_is_not_blamed_on_the_model():
    class Waits(TinyModel):
        def training_step(self, batch, batch_idx):
            until = time.monotonic() + (10 if batch_idx == 1 else 0)
            while time.monotonic() < until:  # torch raises here what it learns from SIGCHLD
                time.sleep(0.01)
            return self.loss(batch)

    def dies_later():
        time.sleep(0.3)
        killed()

    loader = DataLoader(Samples(16 * 3, dies_later), 16, num_workers=1, prefetch_factor=8)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        bare().fit(Waits(), loader)
    (note,) = caught.value.__notes__
    assert note.startswith("fit(train_dataloaders=...): worker 0 of 1 (pid ")
    assert "was killed by SIGKILL, probably because memory ran out." in note
    assert "training_step" not in note


def test_a_worker_that_dies_while_a_logger_works_is_not_blamed_on_the_logger():
    class Waits(Logger):
        def log_metrics(self, metrics, step=None):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                time.sleep(0.01)

    class Logs(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("loss", loss := self.loss(batch))
            return loss

    def dies_later():
        time.sleep(0.3)
        killed()

    loader = DataLoader(Samples(16 * 2, dies_later), 16, num_workers=1, prefetch_factor=8)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        bare(logger=Waits(), log_every_n_steps=1).fit(Logs(), loader)


# The cells of shared/reliability.md: whatever fails in a run, its last checkpoint is good.


class Spoils(Logger):
    time_limit = 0.02

    def __init__(self, method, does):
        self.method, self.does, self.steps = method, does, 0

    def spoil(self, method):
        if method == self.method and self.steps > 3:
            self.does()

    def log_metrics(self, metrics, step=None):
        self.steps += 1
        self.spoil("log_metrics")

    def save(self):
        self.steps += 4 * (self.method == "save")  # it is called before the first step
        self.spoil("save")

    def finalize(self, status):
        self.spoil("finalize")


class Fails(ValidatedModel):
    """Logs, saves its name, and fails where a test says so."""

    def __init__(self, at=""):
        super().__init__()
        self.at = at

    def spoil(self, place, late=True):
        if place == self.at and (not late or self.trainer.global_step >= 4):
            raise RuntimeError("the cause")

    def training_step(self, batch, batch_idx):
        self.spoil("training_step")
        loss = super().training_step(batch, batch_idx)
        if self.at == "backward":
            loss.register_hook(lambda gradient: self.spoil("backward"))
        return loss

    def validation_step(self, batch, batch_idx):
        self.spoil("validation_step")
        super().validation_step(batch, batch_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.spoil("on_after_batch_transfer")
        return batch

    def on_save_checkpoint(self, checkpoint):
        self.spoil("on_save_checkpoint")

    def configure_optimizers(self):
        self.spoil("configure_optimizers", late=False)
        model = self

        class Steps(torch.optim.SGD):
            def step(self, closure=None):
                model.spoil("optimizer.step")
                return super().step(closure)

        return Steps(self.parameters(), lr=0.1)


class Told(leyden.Callback):
    def __init__(self):
        self.teardowns = 0

    def teardown(self, trainer, pl_module, stage):
        self.teardowns += 1


def collate_fails(samples):
    if samples[0][0] is tiny_data(16 * 8)[0][0]:
        return default_collate(samples)
    raise RuntimeError("the cause")


def worker_cannot_start(number):
    raise RuntimeError("the cause")


def callback(hook):
    """A callback whose ``hook`` fails; those in the loop only late."""
    base = type("Counts", (leyden.Callback,), {"calls": 0})

    def due(owner):
        owner.calls += 1
        return owner.calls > {"on_train_batch_end": 4, "on_validation_end": 2}.get(hook, 0)

    return broken(base, hook, due)()


BAD = 16 * 5  # in batch 5: by worker 1 of 2
KILLED = "was killed by SIGKILL, probably because memory ran out"
CELLS = {
    "worker raises": ({"does": fails}, "RuntimeError: the cause"),
    "worker killed": ({"does": killed}, KILLED),
    "worker crashes": ({"does": crashed}, "crashed with SIGSEGV"),
    "worker exits": ({"does": exits}, "ended by itself with exit code 3"),
    "worker hangs": ({"does": hangs, "timeout": 1}, "gave no batch for 1 seconds"),
    "worker cannot start": ({"worker_init_fn": worker_cannot_start}, "RuntimeError: the cause"),
    "training_step": ({"at": "training_step"}, "the cause"),
    "validation_step": ({"at": "validation_step"}, "the cause"),
    "backward": ({"at": "backward"}, "the cause"),
    "optimizer.step": ({"at": "optimizer.step"}, "the cause"),
    "configure_optimizers": ({"at": "configure_optimizers"}, "the cause"),
    "transfer": ({"at": "on_after_batch_transfer"}, "the cause"),
    "module's on_save_checkpoint": ({"at": "on_save_checkpoint"}, "the cause"),
    "callback's setup": ({"hook": "setup"}, "the cause"),
    "callback's on_train_batch_end": ({"hook": "on_train_batch_end"}, "the cause"),
    "callback's on_validation_end": ({"hook": "on_validation_end"}, "the cause"),
    "callback's state_dict": ({"hook": "state_dict"}, "the cause"),
    "callback's on_exception": ({"hook": "on_exception", "at": "training_step"}, "the cause"),
    "callback's teardown": ({"hook": "teardown", "at": "training_step"}, "the cause"),
    "logger's log_metrics": ({"method": "log_metrics"}, None),
    "logger's save": ({"method": "save"}, None),
    "logger's finalize": ({"method": "finalize"}, None),
    "logger hangs": ({"method": "log_metrics", "logs": hangs}, None),
}


@pytest.mark.parametrize("cell", CELLS)
def test_after_any_fault_the_last_checkpoint_is_good_and_all_is_tidy(cell, tmp_path):
    fault, cause = CELLS[cell]
    before = set(multiprocessing.active_children())
    workers = {name: fault[name] for name in ("timeout", "worker_init_fn") if name in fault}
    if workers or "does" in fault:
        workers = {"num_workers": 2, "timeout": 10, **workers}
    loader = DataLoader(Samples(BAD if "does" in fault else -1, fault.get("does")), 16, **workers)
    saves = leyden.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_last=True)
    told = Told()
    trainer = leyden.Trainer(
        max_epochs=1,
        val_check_interval=2,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=Spoils(fault["method"], fault.get("logs", fails)) if "method" in fault else False,
        callbacks=[*([callback(fault["hook"])] if "hook" in fault else []), told, saves],
    )
    error = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            trainer.fit(Fails(fault.get("at", "")), loader, tiny_loader(2))
        except Exception as ended:
            error = (str(ended), ended.__notes__)

    if cause is None:
        assert error is None and trainer.global_step == 8
        assert any("Spoils." in str(one.message) for one in warned)
    else:
        message, (note,) = error
        elsewhere = "DataLoader worker (pid" in message  # where torch raises it while the model works, or it saves
        assert cause in (note if elsewhere else message.splitlines()[-1])
        assert note.startswith("fit(train_dataloaders=...): worker" if elsewhere else "In ")
    assert told.teardowns == 1

    files = sorted(tmp_path.glob("*.ckpt"))
    for file in files:
        torch.load(file, weights_only=True)
    if cell not in ("worker cannot start", "configure_optimizers", "callback's setup", "callback's state_dict"):
        assert tmp_path / "last.ckpt" in files
        again = bare(max_epochs=1, limit_val_batches=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about callbacks that are not there
            again.fit(Fails(), tiny_loader(8), ckpt_path=tmp_path / "last.ckpt")
        assert again.global_step == 8

    del loader, trainer
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
