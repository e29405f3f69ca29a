"""Hyper-parameters: collected from constructors, made plain, and matched to a class again."""

from __future__ import annotations

import collections
import copy
import enum
import functools
import math
import pickle
import threading
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from leyden.fabric.unsafe import unsafe_places
from leyden.utils.errors import LeydenWarning, MisconfigurationError, forget_warnings
from leyden.utils.hparams import (
    AttributeDict,
    collect_hyperparameters,
    from_csv,
    from_yaml,
    init_arguments,
    missing_arguments,
    plain_hyperparameters,
    to_yaml,
)


class Base(nn.Module):
    """Saves as LightningModule and LightningDataModule do."""

    def __new__(cls, *args, **kwargs):
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made

    def __init__(self, *args, **kwargs):
        following = type(self).__mro__[type(self).__mro__.index(Base) + 1]
        if following is not nn.Module:
            following.__init__(self, *args, **kwargs)

    def save_hyperparameters(self, *args, ignore=None, frame=None):
        params, self.name = collect_hyperparameters(self, args, ignore, frame, (Base, nn.Module))
        self.hparams = {**getattr(self, "hparams", {}), **params}


@pytest.fixture(autouse=True)
def every_warning_is_new():
    forget_warnings()


# AttributeDict.


def test_items_are_attributes():
    params = AttributeDict(lr=0.1)
    params.layers = 3
    assert params == {"lr": 0.1, "layers": 3} and params.layers == 3
    del params.lr
    assert params == {"layers": 3} and isinstance(params, dict)
    assert repr(params) == "AttributeDict(layers=3)"


def test_an_unknown_attribute_is_an_error_with_the_nearest_name():
    params = AttributeDict(learning_rate=0.1, layers=3)
    with pytest.raises(AttributeError, match=r"no hyper-parameter 'learning_rat'\. Did you mean 'learning_rate'\?"):
        params.learning_rat  # noqa: B018
    with pytest.raises(AttributeError, match=r"no hyper-parameter 'x'\. There are: learning_rate, layers\."):
        params.x  # noqa: B018
    with pytest.raises(AttributeError, match=r"no hyper-parameter 'x'\. None are saved\."):
        AttributeDict().x  # noqa: B018
    with pytest.raises(AttributeError, match="no hyper-parameter 'layer'"):
        del params.layer
    assert not hasattr(params, "x")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_it_can_be_copied_and_pickled(copied):
    params = AttributeDict(lr=0.1, layers=[1, 2])
    again = copied(params)
    assert again == params and type(again) is AttributeDict and again is not params


def test_a_deep_copy_is_not_reached_by_later_changes_and_shares_what_cannot_be_copied():
    lock, model = threading.Lock(), nn.Linear(1, 1)
    params = AttributeDict(layers=[1], lock=lock, model=model, graph=torch.ones(1, requires_grad=True) * 2)
    initial = params.deep_copy()
    params.layers.append(2)
    params.lr = 1
    assert initial.layers == [1] and "lr" not in initial
    assert initial.lock is lock and initial.model is model
    assert copy.deepcopy(params).model is not model


# Collecting: all arguments.


class Parent(Base):
    def __init__(self, lr=0.1, layers=2, *sizes, **more):
        super().__init__()
        self.save_hyperparameters()


class SilentParent(Base):
    def __init__(self, lr=0.1, layers=2):
        super().__init__()


def test_all_arguments_are_saved_with_defaults_and_kwargs_and_without_args():
    assert Parent().hparams == {"lr": 0.1, "layers": 2}
    assert Parent(0.5, 3, 7, 8, act="relu").hparams == {"lr": 0.5, "layers": 3, "act": "relu"}


def test_keyword_only_and_positional_only_arguments_are_saved():
    class Model(Base):
        def __init__(this, a, /, b=2, *, c, d=4):
            super().__init__()
            local = 5
            this.save_hyperparameters()
            assert local == 5

    assert Model(1, c=3).hparams == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_an_argument_has_the_value_it_has_when_it_is_saved():
    class Model(Base):
        def __init__(self, lr, gone=1):
            super().__init__()
            lr = lr * 2
            del gone
            self.save_hyperparameters()

    assert Model(1).hparams == {"lr": 2}


def test_a_self_that_a_closure_holds_is_found():
    class Model(Base):
        def __init__(self, lr):
            super().__init__()
            self.late = lambda: (self, lr)
            self.save_hyperparameters()

    assert Model(1).hparams == {"lr": 1}


def test_the_parent_saves_for_its_child_too():
    class Child(Parent):
        def __init__(self, depth=5, **kwargs):
            super().__init__(lr=depth / 10, **kwargs)

    assert Child(layers=9, act="relu").hparams == {"depth": 5, "layers": 9, "act": "relu", "lr": 0.5}


def test_the_child_saves_what_it_was_made_with():
    class Child(SilentParent):
        def __init__(self, depth=5, **kwargs):
            super().__init__(**kwargs)
            self.save_hyperparameters()

    assert Child(layers=9).hparams == {"depth": 5, "layers": 9}


def test_parent_and_child_may_both_save():
    class Child(Parent):
        def __init__(self, depth=5, **kwargs):
            super().__init__(**kwargs)
            self.save_hyperparameters()

    assert Child(layers=9).hparams == {"depth": 5, "layers": 9, "lr": 0.1}


def test_of_an_argument_that_parent_and_child_share_the_childs_counts():
    class Child(Parent):
        def __init__(self, lr, depth=5):
            super().__init__(lr=lr * 10)

    assert Child(7).hparams == {"lr": 7, "depth": 5, "layers": 2}


def test_a_child_without_init_saves_its_parents_arguments():
    class Child(Parent):
        pass

    assert Child(lr=3).hparams == {"lr": 3, "layers": 2}


def test_a_class_beside_the_base_adds_its_arguments_and_the_base_none():
    class Backbone(nn.Module):
        def __init__(self, width=8):
            self.save_hyperparameters()

    class Model(Base, Backbone):
        def __init__(self, lr=0.1):
            super().__init__(width=16)

    assert Model().hparams == {"lr": 0.1, "width": 16}


def test_the_frameworks_own_arguments_are_not_saved():
    class Framework(nn.Module):
        def __init__(self, verbose=False):
            super().__init__()
            self.hparams, _ = collect_hyperparameters(self, (), None, None, (Framework,))

    class Model(Framework):
        def __init__(self, lr=0.1):
            super().__init__(verbose=True)

    assert Model().hparams == {"lr": 0.1}


def test_helpers_and_decorators_may_stand_between():
    def decorated(init):
        @functools.wraps(init)
        def wrapper(self, *args, **kwargs):
            return init(self, *args, **kwargs)

        return wrapper

    class Model(Base):
        @decorated
        def __init__(self, lr=0.1):
            super().__init__()
            self.prepare(3)

        def prepare(self, number):
            [self.save() for _ in range(1)]

        def save(self):
            self.save_hyperparameters()

    assert Model(2).hparams == {"lr": 2}


def test_a_module_made_inside_another_saves_its_own_arguments_only():
    class Inner(Base):
        def __init__(self, width=8):
            super().__init__()
            self.save_hyperparameters()

    class Outer(Base):
        def __init__(self, lr=0.1):
            super().__init__()
            self.inner = Inner(width=4)
            self.save_hyperparameters()

    assert Outer().hparams == {"lr": 0.1} and Outer().inner.hparams == {"width": 4}


def test_a_frame_may_be_given():
    class Model(Base):
        def __init__(self, lr=0.1):
            import sys

            super().__init__()
            self.frame = sys._getframe()

    model = Model(3)
    model.save_hyperparameters(frame=model.frame)
    assert model.hparams == {"lr": 3}


def test_dataclasses_save_from_post_init():
    @dataclass(eq=False)
    class Model(Base):
        lr: float = 0.1
        layers: list[int] = field(default_factory=lambda: [1, 2])
        seed: InitVar[int] = 3
        late: int = field(init=False, default=0)

        def __post_init__(self, seed):
            super().__init__()
            self.save_hyperparameters()

    @dataclass(eq=False)
    class Child(Model):
        depth: int = 4

    assert Model(lr=0.5).hparams == {"lr": 0.5, "layers": [1, 2], "seed": 3}
    assert Child(layers=[7]).hparams == {"lr": 0.1, "layers": [7], "seed": 3, "depth": 4}


def test_outside_init_there_is_nothing_to_save():
    model = SilentParent()
    with pytest.raises(MisconfigurationError, match="finds no __init__ of SilentParent that is running"):
        model.save_hyperparameters()
    with pytest.raises(MisconfigurationError, match="finds no __init__"):
        model.save_hyperparameters("lr")
    model.save_hyperparameters({"lr": 3})
    assert model.hparams == {"lr": 3} and model.name is None


# Collecting: names, an object, ignore.


class Chosen(Base):
    def __init__(self, saving, lr=0.1, layers=2, ignore=None, **more):
        super().__init__()
        self.save_hyperparameters(*saving, ignore=ignore)


def test_names_choose_arguments_of_the_chain_and_kwargs():
    class Child(Chosen):
        def __init__(self, depth=5, **kwargs):
            super().__init__(saving=("lr", "depth", "act"), **kwargs)

    assert Child(act="relu").hparams == {"lr": 0.1, "depth": 5, "act": "relu"}
    assert Child(act="relu").name is None


def test_a_misspelt_name_is_an_error_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"save_hyperparameters\('layer'\).*Did you mean 'layers'\?"):
        Chosen(saving=("layer",))


def test_names_can_be_saved_one_after_another():
    class Model(Base):
        def __init__(self, a=1, b=2, c=3):
            super().__init__()
            self.save_hyperparameters("a")
            self.save_hyperparameters("b")

    assert Model().hparams == {"a": 1, "b": 2}


@dataclass
class Config:
    lr: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize(
    "conf",
    [
        {"lr": 0.1, "sizes": (1, 2)},
        AttributeDict(lr=0.1, sizes=(1, 2)),
        MappingProxyType({"lr": 0.1, "sizes": (1, 2)}),
        Namespace(lr=0.1, sizes=(1, 2)),
        SimpleNamespace(lr=0.1, sizes=(1, 2)),
        Config(),
    ],
    ids=lambda conf: type(conf).__name__,
)
def test_the_items_of_one_object_are_saved_and_its_argument_is_named(conf):
    class Model(Base):
        def __init__(self, conf, other=1):
            super().__init__()
            self.save_hyperparameters(conf)

    model = Model(conf)
    assert model.hparams == {"lr": 0.1, "sizes": (1, 2)} and model.name == "conf"


def test_an_object_goes_by_the_name_that_the_class_itself_takes():
    class ConfParent(Base):
        def __init__(self, conf):
            super().__init__()
            self.save_hyperparameters(conf)

    class Child(ConfParent):
        def __init__(self, config, **kwargs):
            super().__init__(config)

    class Builder(ConfParent):
        def __init__(self, lr):
            super().__init__({"lr": lr})

    assert Child({"lr": 1}).name == "config"
    assert Builder(1).name is None and Builder(1).hparams == {"lr": 1}
    assert ConfParent({"lr": 1}).name == "conf"


@pytest.mark.parametrize("ignore", ["lr", ["lr"], ("lr", "saving"), {"lr"}])
def test_ignored_names_are_left_out_of_every_form(ignore):
    assert "lr" not in Chosen((), ignore=ignore).hparams and "layers" in Chosen((), ignore=ignore).hparams
    assert Chosen(("lr", "layers"), ignore=ignore).hparams == {"layers": 2}
    assert Chosen(({"lr": 1, "b": 2},), ignore=ignore).hparams == {"b": 2}


def test_a_misspelt_ignore_warns_and_one_for_other_classes_does_not():
    with pytest.warns(LeydenWarning, match=r"ignore='layer'.*Did you mean 'layers'\? \[LD161\]"):
        Chosen((), ignore=["layer"])
    assert "lr" in Chosen((), ignore="criterion").hparams


@pytest.mark.parametrize("args", [(3,), (["lr", "layers"],), (Base,), ({"lr": 1}, "layers"), ({}, {})])
def test_anything_else_is_refused(args):
    with pytest.raises(MisconfigurationError, match="save_hyperparameters"):
        Chosen(args)
    with pytest.raises(MisconfigurationError, match="ignore=3"):
        Chosen((), ignore=[3])


def test_a_module_is_saved_with_one_warning_that_names_the_remedy():
    class Model(Base):
        def __init__(self, backbone, lr=0.1):
            super().__init__()
            self.save_hyperparameters()

    backbone = nn.Linear(1, 1)
    with pytest.warns(LeydenWarning, match=r"'backbone' of Model.*ignore=\['backbone'\].*\[LD160\]"):
        assert Model(backbone).hparams == {"backbone": backbone, "lr": 0.1}
    Model(backbone)  # said already; a second warning would be an error here


# Made plain.


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    def __str__(self):
        return "another"


class Mine(Mapping):
    """A mapping like OmegaConf's, which is no dict."""

    def __init__(self, of):
        self.of = of

    def __getitem__(self, key):
        return self.of[key]

    def __iter__(self):
        return iter(self.of)

    def __len__(self):
        return len(self.of)


class Thing:
    pass


Pair = collections.namedtuple("Pair", "a b")

PLAIN = {
    "kept": ([None, True, 0, -1, 0.5, 1j, "x", b"x"], [None, True, 0, -1, 0.5, 1j, "x", b"x"]),
    "dtype": (torch.float16, torch.float16),
    "device": (torch.device("cuda:1"), torch.device("cuda:1")),
    "path": (Path("a") / "b", str(Path("a") / "b")),
    "str-Enum": (Color.RED, "red"),
    "IntEnum": (Level.LOW, 1),
    "Enum of a tuple": (enum.Enum("Size", {"S": (1, Path("x"))}).S, (1, "x")),
    "str subclass": (Text("x"), "x"),
    "numpy numbers": ([np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True)], [0.5, 0.5, 3, True]),
    "numpy str": (np.str_("x"), "x"),
    "numpy array": (np.array([[1, 2]], dtype=np.int8), [[1, 2]]),
    "Namespace": (Namespace(a=Namespace(b=1)), {"a": {"b": 1}}),
    "dataclass": (Config(lr=np.float64(1)), {"lr": 1.0, "sizes": (1, 2)}),
    "AttributeDict": (AttributeDict(a=AttributeDict(b=1)), {"a": {"b": 1}}),
    "OrderedDict": (collections.OrderedDict(a=1), {"a": 1}),
    "defaultdict": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "mapping": (Mine({"a": Mine({"b": 1})}), {"a": {"b": 1}}),
    "named tuple": (Pair(1, Color.RED), (1, "red")),
    "Size": (torch.Size([1, 2]), (1, 2)),
    "range": (range(3), [0, 1, 2]),
    "deque": (collections.deque([1]), [1]),
    "set": ({1, Level.LOW}, {1}),
    "frozenset": (frozenset({"a"}), {"a"}),
    "keys": ({Color.RED: 1, 2: 3}, {"red": 1, 2: 3}),
    "bytearray": (bytearray(b"x"), bytearray(b"x")),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_value_gets_its_plain_form_and_can_be_in_a_checkpoint(name):
    value, expected = PLAIN[name]
    plain, left_out = plain_hyperparameters({"x": value})
    assert repr(plain) == repr({"x": expected}) and left_out == []
    assert unsafe_places(plain) == []


def test_tensors_stay_without_their_graph():
    plain, _ = plain_hyperparameters({"w": torch.ones(2, requires_grad=True) * 2, "p": nn.Parameter(torch.ones(1))})
    assert torch.equal(plain["w"], torch.full((2,), 2.0)) and not plain["w"].requires_grad
    assert unsafe_places(plain) == []


def cyclic():
    of: list = []
    of.append(of)
    return of


@pytest.mark.parametrize(
    "value",
    [
        *(Thing(), Thing, nn.ReLU, nn.ReLU(), nn.ModuleDict(), print, lambda: 0, functools.partial(print)),
        *(threading.Lock(), {frozenset({1}): 2}, {frozenset({1})}, cyclic(), b"", 2**5000, np.longdouble(1)),
        *(torch.ones(1).as_subclass(type("Mine", (torch.Tensor,), {})), np.datetime64("2020-01-01"), slice(1)),
        *(enum.Enum("E", {"A": Thing()}).A, torch.Generator(), ...),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_plain_form_is_left_out_by_name_at_any_depth(value):
    plain, left_out = plain_hyperparameters({"a": 1, "x": value, "deep": {"y": [value]}, "b": 2})
    assert plain == {"a": 1, "b": 2} and left_out == ["x", "deep"]


def test_a_list_that_is_there_twice_is_no_cycle():
    one = [1]
    assert plain_hyperparameters({"x": [one, one]}) == ({"x": [[1], [1]]}, [])


def test_the_plain_copy_is_a_copy():
    params = {"layers": [1]}
    plain, _ = plain_hyperparameters(params)
    plain["layers"].append(2)
    assert params == {"layers": [1]}


# Matched to a class.


def test_saved_arguments_that_the_class_does_not_take_are_passed_over_and_given_ones_win():
    assert init_arguments(SilentParent, {"lr": 1, "layers": 2, "other": 3}, {"lr": 5}) == {"lr": 5, "layers": 2}


def test_a_given_argument_that_the_class_does_not_take_is_an_error():
    with pytest.raises(TypeError, match=r"SilentParent\.__init__ takes no argument 'layer'.*Did you mean 'layers'\?"):
        init_arguments(SilentParent, {}, {"layer": 1})


def test_kwargs_used_by_the_class_itself_take_anything():
    class Model(Base):
        def __init__(self, lr, **kwargs):
            super().__init__()
            self.net = dict(kwargs)

    assert init_arguments(Model, {"lr": 1, "width": 2}, {"depth": 3}) == {"lr": 1, "width": 2, "depth": 3}
    assert missing_arguments(Model, {}) == ["lr"]


def test_kwargs_passed_up_take_what_the_parent_takes():
    class Child(SilentParent):
        def __init__(self, depth, **kwargs):
            super().__init__(**kwargs)

    assert init_arguments(Child, {"depth": 1, "lr": 2, "other": 3}, {}) == {"depth": 1, "lr": 2}
    with pytest.raises(TypeError, match=r"'layer'.*Did you mean 'layers'"):
        init_arguments(Child, {}, {"layer": 1})


def test_what_a_child_gives_its_parent_itself_is_not_given_again():
    class ByName(Parent):
        def __init__(self, depth=5, **kwargs):
            super().__init__(lr=depth / 10, **kwargs)

    class ByPosition(Parent):
        def __init__(self, depth=5, **kwargs):
            Parent.__init__(self, depth / 10, **kwargs)

    for child in (ByName, ByPosition):
        made = child(layers=9, act="relu")
        arguments = init_arguments(child, made.hparams, {})
        assert arguments == {"depth": 5, "layers": 9, "act": "relu"}
        assert child(**arguments).hparams == made.hparams


def test_names_that_are_looked_up_in_the_kwargs_on_the_way_are_taken_too():
    class Child(SilentParent):
        def __init__(self, **kwargs):
            self.depth = kwargs.pop("depth", 1) if "width" in kwargs else kwargs["height"]
            super().__init__(**kwargs)

    saved = {"depth": 1, "width": 2, "height": 3, "lr": 4, "other": 5}
    assert init_arguments(Child, saved, {}) == {"depth": 1, "width": 2, "height": 3, "lr": 4}


def test_kwargs_that_reach_the_base_take_nothing_more():
    class Model(Base):
        def __init__(self, lr, **kwargs):
            super().__init__(**kwargs)

    assert init_arguments(Model, {"lr": 1, "other": 2}, {}) == {"lr": 1}


def test_a_class_without_source_takes_anything():
    names: dict = {"SilentParent": SilentParent}
    exec("class Child(SilentParent):\n  def __init__(self, d, **kw):\n    super().__init__(**kw)", names)
    assert init_arguments(names["Child"], {"d": 1, "other": 2}, {}) == {"d": 1, "other": 2}


def test_missing_arguments_are_those_without_default_over_the_chain():
    class Needy(Base):
        def __init__(self, a, b, c=1, *, d, **more):
            super().__init__()

    class Child(Needy):
        def __init__(self, depth, **kwargs):
            super().__init__(1, d=depth, **kwargs)

    assert missing_arguments(Needy, {"a": 1}) == ["b", "d"]
    assert missing_arguments(Child, ["depth"]) == ["b"]
    assert missing_arguments(Base, []) == []


def test_dataclasses_are_matched_by_their_fields():
    assert init_arguments(Config, {"lr": 1, "other": 2}, {}) == {"lr": 1}
    assert missing_arguments(Config, {}) == []


# Files.


def test_yaml_comes_back_in_the_order_it_was_and_names_what_is_left_out(tmp_path):
    params = {"lr": 0.1, "cfg": {"b": (1, 2), "a": None}, "act": nn.ReLU, "path": Path("x"), "dtype": torch.float16}
    to_yaml({**params, "w": torch.ones(2), "bad": float("nan"), "exp": "1e-3"}, tmp_path / "hparams.yaml")
    text = (tmp_path / "hparams.yaml").read_text()
    assert text.startswith("lr: 0.1\ncfg:\n  b:\n  - 1\n  - 2\n") and text.endswith("no plain form: act\n")
    read = from_yaml(tmp_path / "hparams.yaml")
    assert math.isnan(read.pop("bad"))
    assert read == {
        **{"lr": 0.1, "cfg": {"b": [1, 2], "a": None}, "path": "x", "dtype": "torch.float16"},
        **{"w": [1.0, 1.0], "exp": "1e-3"},
    }


def test_no_hyperparameters_are_an_empty_mapping(tmp_path):
    to_yaml({}, tmp_path / "a.yaml")
    (tmp_path / "b.yaml").touch()
    assert from_yaml(tmp_path / "a.yaml") == from_yaml(tmp_path / "b.yaml") == {}


def test_tuples_as_lightning_writes_them_are_read_and_objects_are_not(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("t: !!python/tuple\n- 1\n- 2\n")
    assert from_yaml(path) == {"t": (1, 2)}
    for text in ("x: !!python/name:os.system ''", "x: !!python/object/apply:os.mkdir [pwned]", "- 1", "a: b: c"):
        path.write_text(text)
        with pytest.raises(MisconfigurationError, match=r"a\.yaml"):
            from_yaml(path)


def test_csv_values_become_numbers_and_lists(tmp_path):
    rows = 'key,value\nlr,0.1\nn,3\nname,"x,y"\nnone,\nl,"[1, 2]"\nb,True\ninf,inf\nobject,<built-in function len>\n'
    (tmp_path / "a.csv").write_text(rows)
    assert from_csv(tmp_path / "a.csv") == {
        **{"lr": 0.1, "n": 3, "name": "x,y", "none": "", "l": [1, 2], "b": True, "inf": math.inf},
        **{"object": "<built-in function len>"},
    }
    (tmp_path / "b.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(MisconfigurationError, match=r"b\.csv has the columns \['step', 'loss'\]"):
        from_csv(tmp_path / "b.csv")
