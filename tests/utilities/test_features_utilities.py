"""Utilities of Lightning that are not built: who imports one is told its name."""

from __future__ import annotations

import importlib.util

import pytest


def test_training_spikes_have_no_exception_of_their_own():
    with pytest.raises(ImportError, match=r"TrainingSpikeException is not built yet.*on_train_batch_end"):
        from leyden.utilities.exceptions import TrainingSpikeException  # noqa: F401


def test_deepspeeds_files_cannot_be_converted():
    with pytest.raises(ImportError, match="deepspeed"):
        from leyden.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict  # noqa: F401


def test_lightnings_own_names_are_not_stood_in_for():
    for package in ("pytorch_lightning", "lightning"):
        found = importlib.util.find_spec(package)
        assert found is None or "leyden" not in str(found.origin)  # the real one may be installed
    with pytest.raises(ImportError, match="decorators"):
        from leyden.core.decorators import auto_move_data  # noqa: F401
