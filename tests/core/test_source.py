"""What the source of classes tells: the names they log, and the methods they call."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from leyden.core.callback import Callback
from leyden.core.former_code import check_former_code
from leyden.core.module import LightningModule
from leyden.core.source import (
    called_names,
    forgets_return,
    functions,
    log_calls,
    logged_names,
    mentions,
    parameter_names,
    parameters,
    user_classes,
    words,
)


class Plain(LightningModule):
    """Logs plain names, and calls what resembles logging."""

    def training_step(self, batch: Any) -> None:
        self.log("loss", math.log(2.0) + batch.log() + torch.log(batch))
        self.log(name="train/acc", value=1.0)
        self.log_dict({"a": 1.0, "b.c": 2.0}, on_step=True)
        self.logger.experiment.log({"picture": batch})

    def validation_step(self, batch: Any) -> None:
        stage = "val"
        self.log(f"{stage}_loss", 1.0)


class Computes(LightningModule):
    def training_step(self, batch: Any) -> None:
        for name, value in batch.items():
            self.log(name, value)


class ComputesSome(LightningModule):
    def training_step(self, batch: Any) -> None:
        self.log_dict({"a": 1.0, batch.name: 2.0})


class LogsMany(LightningModule):
    def training_step(self, batch: Any) -> None:
        self.log_dict(batch)


class HandsOn(LightningModule):
    def training_step(self, batch: Any) -> None:
        batch.note(self.log)


class HandsItself(LightningModule):
    def __init__(self, helper: Any) -> None:
        super().__init__()
        helper(self)


class OldSuper(LightningModule):
    def __init__(self) -> None:
        super(OldSuper, self).__init__()  # noqa: UP008
        self.log("x", 1.0)


class Adds(Callback):
    def on_train_epoch_end(self, trainer: Any, net: Any) -> None:
        trainer.add_callback_metrics({"added": 1.0})
        net.log("of_net", 1.0)


def wrapped(method: Any) -> Any:
    @functools.wraps(method)
    def inner(*args: Any) -> Any:
        return method(*args)

    return inner


def replaced(method: Any) -> Any:
    def inner(*args: Any) -> Any:
        return method(*args)

    return inner


class Decorated(LightningModule):
    @torch.no_grad()
    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", 1.0)

    @wrapped
    def test_step(self, batch: Any) -> None:
        self.log("test_loss", 1.0)


class Hidden(LightningModule):
    @replaced
    def training_step(self, batch: Any) -> None:
        self.log("loss", 1.0)


@dataclass
class Data(Callback):
    monitor: str = "x"

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.helper()
        super().teardown(trainer, pl_module, "fit")

    def helper(self) -> None:
        pass


def test_plain_names_and_patterns_are_found():
    assert logged_names([Plain]) == {"loss", "train/acc", "a", r"b\.c", ".*_loss"}


def test_methods_that_do_not_run_are_left_out():
    assert logged_names([Plain], {"validation_step"}) == {"loss", "train/acc", "a", r"b\.c"}


def test_it_cannot_tell_what_is_computed_or_handed_on():
    for cls in (Computes, ComputesSome, LogsMany, HandsOn, HandsItself):
        assert logged_names([Plain, cls]) is None, cls
    assert logged_names([Computes], {"training_step"}) == set()


def test_the_super_of_python_2_hands_nothing_on():
    assert logged_names([OldSuper]) == {"x"}


def test_metrics_that_a_callback_adds_or_logs_through_another_name_are_found():
    assert logged_names([Adds]) == {"added", "of_net"}


def test_decorated_methods_are_read_and_replaced_ones_are_not():
    assert logged_names([Decorated]) == {"val_loss", "test_loss"}
    assert logged_names([Hidden]) is None


def test_classes_without_source_cannot_tell():
    assert logged_names([type("Made", (LightningModule,), {"training_step": lambda self: None})]) is None


def test_generated_methods_do_not_matter_and_calls_of_super_do_not_count():
    assert logged_names([Data], {"on_train_end"}) == set()
    assert "helper" in called_names([Data])
    assert "teardown" not in called_names([Data])


def test_calls_of_self_log_are_found_with_their_place():
    assert list(log_calls(Plain)) == [
        ("training_step", False),
        ("training_step", False),
        ("training_step", True),
        ("validation_step", False),
    ]


def test_the_names_of_arguments_are_found():
    assert mentions([Plain], "on_step")
    assert not mentions([Plain], "add_dataloader_idx")


def test_classes_of_torch_and_of_ours_are_not_the_users():
    class Derived(Plain):
        pass

    assert user_classes(Derived()) == [Derived, Plain]


def test_a_function_mentions_what_the_functions_inside_it_do():
    def outer(self: Any) -> Any:
        def inner() -> Any:
            return self.log("name", 1.0, on_step=True, **{"more": [each.other for each in self]})

        return inner

    assert {"log", "other"} <= words(outer).names
    assert {"name", "on_step", "more"} <= words(outer).strings


def test_a_class_without_a_former_name_is_not_parsed(monkeypatch: pytest.MonkeyPatch):
    class Fresh(LightningModule):
        def training_step(self, batch: Any) -> Any:
            return batch.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def refuse(*_: Any) -> Any:
        raise AssertionError("source was parsed")

    monkeypatch.setattr(ast, "parse", refuse)
    module = Fresh()
    check_former_code([(module, LightningModule)])
    assert not forgets_return(module, "training_step")
    assert not list(log_calls(Fresh))


def test_classes_that_a_function_makes_are_parsed_once(monkeypatch: pytest.MonkeyPatch):
    def make() -> type[LightningModule]:
        class Made(LightningModule):
            def on_train_epoch_end(self) -> None:
                self.log("made", 1.0)

        return Made

    parsed: list[str] = []
    parse = ast.parse
    monkeypatch.setattr(ast, "parse", lambda text: parsed.append(text) or parse(text))
    found = [list(log_calls(make())) for _ in range(3)]
    assert found == [[("on_train_epoch_end", False)]] * 3
    assert len(parsed) == 1


class Returns:
    def nothing(self, x: Any) -> Any:
        print(x)

    def constant(self, x: Any) -> Any:
        print(x)
        return 1

    def sometimes(self, x: Any) -> Any:
        if x:
            return print(x)

    def within(self, x: Any) -> Any:
        with x:
            print(x)

    def yields(self, x: Any) -> Any:
        yield print(x)

    def raises(self, x: Any) -> Any:
        raise ValueError(str(x))


def test_only_what_never_returns_anything_forgets_it():
    assert [name for name in functions(Returns) if forgets_return(Returns(), name)] == ["nothing", "within"]


def _signatures() -> list[Callable[..., Any]]:
    parts = ["a, /, ", "b, ", "c=1, ", "*args, ", "*, ", "d, ", "e=1, ", "**more"]
    found = []
    for chosen in itertools.chain.from_iterable(itertools.combinations(parts, count) for count in range(6)):
        names: dict[str, Any] = {}
        try:
            exec(f"def f(self, {''.join(chosen)}): pass", names)
        except SyntaxError:
            continue
        found.append(names["f"])
    return found


@pytest.mark.parametrize("arguments", range(5))
def test_parameters_take_the_calls_that_the_signature_takes(arguments: int):
    functions = _signatures()
    assert len(functions) > 60
    for function in functions:
        method = function.__get__(object())
        known, signature = parameters(method), inspect.signature(method)
        assert known is not None and parameter_names(method) == list(signature.parameters)
        for given in ((), ("b",), ("c",), ("d",), ("b", "d"), ("d", "e"), ("other",)):
            try:
                signature.bind(*[None] * arguments, **dict.fromkeys(given))
                takes = True
            except TypeError:
                takes = False
            assert known.take(arguments, given) == takes, (str(signature), arguments, given)


def test_parameters_of_what_is_decorated_are_left_to_inspect():
    @functools.wraps(Returns.nothing)
    def wrapper(*args: Any) -> None: ...

    assert parameters(wrapper) is None
    assert parameters(functools.partial(print)) is None
    assert parameter_names(wrapper) == ["self", "x"]
