"""Throughput: rates over the last updates."""

from __future__ import annotations

import pytest

from leyden.utils.throughput import Throughput


def after(throughput: Throughput, updates: int, **more: int) -> dict[str, float]:
    """The rates after so many updates of 2 seconds, 1 batch, 4 samples, 10 items."""
    for i in range(1, updates + 1):
        throughput.update(time=2.0 * i, batches=i, samples=4 * i, lengths=10 * i, **more)
    return throughput.compute()


def test_before_the_window_is_full_there_are_totals_alone():
    assert Throughput(window_size=3).compute() == {}
    assert after(Throughput(window_size=3), 2) == {"time": 4.0, "batches": 2, "samples": 8, "lengths": 20}


def test_a_full_window_gives_the_rates_of_this_device():
    assert after(Throughput(window_size=3), 3) == {
        "time": 6.0,
        "batches": 3,
        "samples": 12,
        "lengths": 30,
        "device/batches_per_sec": 0.5,
        "device/samples_per_sec": 2.0,
        "device/items_per_sec": 5.0,
    }


def test_several_devices_give_the_rates_of_all_too_and_utilisation_is_of_one():
    rates = after(Throughput(available_flops=100, world_size=2, window_size=3, separator="."), 4, flops=50)
    assert {name: rate for name, rate in rates.items() if "per_sec" in name or "mfu" in name} == {
        "device.batches_per_sec": 0.5,
        "device.samples_per_sec": 2.0,
        "device.items_per_sec": 5.0,
        "device.flops_per_sec": 25.0,
        "device.mfu": 0.25,
        "batches_per_sec": 1.0,
        "samples_per_sec": 4.0,
        "items_per_sec": 10.0,
        "flops_per_sec": 50.0,
    }


def test_only_the_window_counts():
    throughput = Throughput(window_size=2)
    for time, samples in [(100, 1), (101, 2), (102, 12)]:
        throughput.update(time=time, batches=samples, samples=samples)
    assert throughput.compute()["device/samples_per_sec"] == 10.0


def test_what_not_every_update_has_has_no_rate():
    throughput = Throughput(window_size=2)
    throughput.update(time=1, batches=1, samples=1, flops=5)
    throughput.update(time=2, batches=2, samples=2, lengths=2)
    assert throughput.compute() == {
        "time": 2,
        "batches": 2,
        "samples": 2,
        "lengths": 2,
        "device/batches_per_sec": 1.0,
        "device/samples_per_sec": 1.0,
    }


def test_reset_forgets():
    throughput = Throughput(window_size=2)
    after(throughput, 5)
    throughput.reset()
    assert after(throughput, 1) == {"time": 2.0, "batches": 1, "samples": 4, "lengths": 10}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"time": 2}, "time=2 is not above 2"),
        ({"batches": 1}, "batches=1 is not above 1"),
        ({"samples": 4}, "samples=4 is not above 4"),
        ({"lengths": 10}, "lengths=10 is not above 10"),
        ({"batches": 9}, "samples=8 is less than batches=9"),
        ({"lengths": 7}, "lengths=7 is less than samples=8"),
    ],
)
def test_totals_must_grow_and_a_refused_update_leaves_nothing(wrong, message):
    throughput = Throughput(window_size=2)
    throughput.update(time=2, batches=1, samples=4, lengths=10)
    right = {"time": 4, "batches": 2, "samples": 8, "lengths": 20}
    with pytest.raises(ValueError, match=message):
        throughput.update(**right | wrong)
    throughput.update(**right)
    assert throughput.compute()["device/samples_per_sec"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_size": 1}, "window_size=1 is less than 2"),
        ({"world_size": 0}, "world_size=0 is less than 1"),
        ({"available_flops": 0}, "available_flops=0 is not above 0"),
    ],
)
def test_numbers_that_are_too_small_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Throughput(**arguments)
