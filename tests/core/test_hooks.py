"""overridden: the quick look at which hooks somebody has finds what a close look at each of them finds."""

from __future__ import annotations

from types import MethodType

import pytest
from torch import nn

from leyden.core.callback import Callback
from leyden.core.hooks import HOOKS, overridden, overrides
from leyden.core.module import LightningModule
from models import TinyModel, tiny_loader
from recording import bare


class Defines(LightningModule):
    def on_fit_start(self):
        pass


class Inherits(Defines):
    pass


class Mixin:
    def on_train_end(self):
        pass

    def on_sanity_check_start(self):
        pass


class InFront(Mixin, LightningModule):
    pass


class Behind(LightningModule, Mixin):
    """Whose on_train_end is ours, and whose on_sanity_check_start, which we have not, is the mixin's."""


class Property(LightningModule):
    @property
    def on_train_start(self):
        return print


class Found(LightningModule):
    def __getattr__(self, name):
        return print if name == "on_sanity_check_end" else super().__getattr__(name)


class Given(LightningModule):
    def __getattribute__(self, name):
        return print if name == "on_fit_end" else super().__getattribute__(name)


def patched():
    module = LightningModule()
    module.on_train_epoch_end = MethodType(lambda self: None, module)
    return module


def holding():
    module = LightningModule()
    module.on_sanity_check_start = nn.Identity()
    return module


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (LightningModule, []),
        (Defines, ["on_fit_start"]),
        (Inherits, ["on_fit_start"]),
        (InFront, ["on_sanity_check_start", "on_train_end"]),
        (Behind, ["on_sanity_check_start"]),
        (Property, ["on_train_start"]),
        (Found, ["on_sanity_check_end"]),
        (Given, ["on_fit_end"]),
        (patched, ["on_train_epoch_end"]),
        (holding, ["on_sanity_check_start"]),
    ],
)
def test_a_hook_is_found_wherever_it_comes_from(make, names):
    module = make()
    assert overridden(module, HOOKS, LightningModule) == names
    assert [name for name in HOOKS if overrides(module, name, LightningModule)] == names


def test_a_class_and_an_object_may_change_from_run_to_run(monkeypatch):
    calls = []

    class Mine(Callback):
        pass

    callback, model = Mine(), TinyModel()
    bare(callbacks=[callback]).fit(model, tiny_loader())
    monkeypatch.setattr(Mine, "on_train_start", lambda *_: calls.append("class"), raising=False)
    callback.on_train_end = lambda *_: calls.append("object")
    monkeypatch.setattr(TinyModel, "on_fit_end", lambda self: calls.append("module"), raising=False)
    bare(callbacks=[callback]).fit(model, tiny_loader())
    assert calls == ["class", "object", "module"]
