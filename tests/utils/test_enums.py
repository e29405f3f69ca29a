"""Enums whose members are strings."""

from __future__ import annotations

import pytest

from leyden.utils.enums import GradClipAlgorithmType, LightningEnum


class Mode(LightningEnum):
    FAST = "very-fast"
    SLOW = "slow"


def test_members_equal_their_values_in_any_case():
    assert Mode.FAST == "very-fast" == Mode.FAST == "Very-Fast"
    assert Mode.FAST != "slow" and Mode.FAST != Mode.SLOW and Mode.FAST != 1
    assert {Mode.FAST: 1}["very-fast"] == 1
    assert Mode("slow") is Mode.SLOW


@pytest.mark.parametrize("given", ["fast", "FAST", "very-fast", "VERY-fast"])
def test_members_are_found_by_name_and_value(given):
    assert Mode.from_str(given) is Mode.FAST


def test_what_is_unknown_is_refused_with_a_hint():
    assert Mode.try_from_str("sloww") is None
    with pytest.raises(
        ValueError, match=r"'sloww' is unknown\. Choose one of: very-fast, slow\. Did you mean 'slow'\?"
    ):
        Mode.from_str("sloww")


def test_ways_to_clip_gradients():
    assert GradClipAlgorithmType.supported_types() == ["value", "norm"]
    assert GradClipAlgorithmType.supported_type("norm") and GradClipAlgorithmType.supported_type(
        GradClipAlgorithmType.VALUE
    )
    assert not GradClipAlgorithmType.supported_type("size")
