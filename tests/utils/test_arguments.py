"""A constructor's arguments as options of argparse."""

from __future__ import annotations

import argparse

import pytest

from leyden.utils.arguments import add_arguments, add_arguments_of, chosen, parsed, value_of


class Model:
    def __init__(self, width: int, name: str = "net", rate: float = 0.1, *, bias: bool = True, **rest: object) -> None:
        pass


def read(words: str) -> argparse.Namespace:
    return add_arguments_of(Model, argparse.ArgumentParser()).parse_args(words.split())


def test_every_argument_that_can_be_named_is_an_option_with_its_default():
    assert vars(read("")) == {"width": None, "name": "net", "rate": 0.1, "bias": True}


def test_words_become_what_they_look_like_unless_a_string_is_expected():
    assert vars(read("--width 3 --name 3 --rate 1e-3 --bias false")) == {
        **{"width": 3, "name": "3", "rate": 1e-3, "bias": False}
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e6", 1e6),
        ("True", True),
        ("NONE", None),
        ("0,1", "0,1"),
        ("bf16", "bf16"),
    ],
)
def test_a_word_becomes_what_it_looks_like(word, value):
    assert value_of(word) == value
    assert type(value_of(word)) is type(value)


def test_a_flag_may_stand_alone_and_a_number_may_not():
    assert read("--bias").bias is True
    with pytest.raises(SystemExit):
        read("--rate")


def test_options_that_are_there_stay_as_they_are():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=str, default="mine")
    assert add_arguments(parser, {"rate": 0.1, "more": 1}).parse_args([]) == argparse.Namespace(rate="mine", more=1)


def test_what_is_chosen_leaves_strangers_out_and_lets_the_caller_decide():
    given = argparse.Namespace(width=3, lr=1, bias=False)
    assert chosen(given, ("width", "bias", "name"), {"bias": True, "extra": 1}) == {
        **{"width": 3, "bias": True, "extra": 1}
    }
    assert parsed({"width": 3}).width == 3
