"""What users write for accelerator=, devices=, precision=, strategy= and plugins=, and what comes of it."""

from __future__ import annotations

import pytest
import torch

from leyden.fabric.accelerators import Accelerator, available_accelerators
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from leyden.fabric.resolve import (
    canonical_precision,
    resolve_accelerator,
    resolve_devices,
    resolve_hardware,
    resolve_plugins,
    resolve_precision,
    resolve_strategy,
)
from leyden.fabric.strategies.strategy import Strategy
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError

CPU = torch.device("cpu")


class ThreeChips(Accelerator):
    """A machine with three of something."""

    name = "cuda"

    def count(self):
        return 3

    def device(self, index):
        return torch.device("cuda", index)


class Missing(Accelerator):
    """Something this machine has not."""

    name = "abacus"

    @staticmethod
    def is_available():
        return False


def strategy_of(strategy, num_nodes=1, precision=None, checkpoint_io=None):
    return resolve_strategy(strategy, [CPU], num_nodes, precision or Precision(), checkpoint_io)


# accelerator=


def test_cpu_is_the_cpu():
    assert resolve_accelerator("cpu").name == "cpu"


def test_auto_is_the_best_accelerator_here():
    assert resolve_accelerator("auto").name == available_accelerators()[0]


def test_an_accelerator_object_is_taken_as_it_is():
    cpu = Accelerator()
    assert resolve_accelerator(cpu) is cpu


@pytest.mark.parametrize("name", ["tpu", "xla", "hpu", "ipu"])
def test_accelerators_that_lightning_has_or_had_are_not_built(name):
    with pytest.raises(NotBuiltError, match=f"accelerator='{name}'.*'cuda', 'mps' or 'cpu'"):
        resolve_accelerator(name)


def test_an_unknown_accelerator_is_answered_with_the_list_and_the_nearest():
    with pytest.raises(ValueError, match=r"accelerator='cdua' is unknown.*auto, gpu, cuda, mps, cpu.*'cuda'\?"):
        resolve_accelerator("cdua")


@pytest.mark.skipif(available_accelerators() != ["cpu"], reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_here_is_answered_with_those_that_are(name):
    with pytest.raises(MisconfigurationError, match=f"accelerator='{name}' finds no such device.*Available: cpu"):
        resolve_accelerator(name)


def test_an_accelerator_object_that_is_not_here_is_refused():
    with pytest.raises(MisconfigurationError, match="'abacus' finds no such device"):
        resolve_accelerator(Missing())


@pytest.mark.gpu
def test_gpu_is_cuda_without_mps():
    assert resolve_accelerator("gpu").name == "cuda"


# devices=


@pytest.mark.parametrize("devices", ["auto", 1, "1", -1, "-1", [0], "0,"])
def test_every_way_to_ask_for_one_device_on_the_cpu(devices):
    assert resolve_devices(devices, Accelerator()) == [CPU]


@pytest.mark.parametrize("devices", [[2], "2,"])
def test_an_id_chooses_the_device(devices):
    assert resolve_devices(devices, ThreeChips()) == [torch.device("cuda:2")]


def test_a_count_takes_the_first_devices():
    assert resolve_devices(1, ThreeChips()) == [torch.device("cuda:0")]


def test_auto_takes_one_of_several_devices_and_says_so():
    with pytest.warns(LeydenWarning, match=r"1 of the 3 cuda devices.*devices=1.*LD150"):
        assert resolve_devices("auto", ThreeChips()) == [torch.device("cuda:0")]


@pytest.mark.parametrize("devices", [0, "0", [], ","])
def test_no_device_is_refused(devices):
    with pytest.raises(MisconfigurationError, match="asks for no device"):
        resolve_devices(devices, ThreeChips())


@pytest.mark.parametrize("devices", [[1, 1], "1,1"])
def test_a_device_named_twice_is_refused(devices):
    with pytest.raises(MisconfigurationError, match="names a device twice"):
        resolve_devices(devices, ThreeChips())


@pytest.mark.parametrize(("devices", "missing"), [([3], "3"), ("0,5,7", "5, 7"), (5, "3, 4"), ([-1], "-1")])
def test_devices_that_are_not_here_are_named_with_those_that_are(devices, missing):
    with pytest.raises(MisconfigurationError, match=f"not here: {missing}. Available: 0, 1, 2."):
        resolve_devices(devices, ThreeChips())


@pytest.mark.parametrize("devices", [2, "0,1", [0, 2], -1])
def test_several_devices_are_not_built(devices):
    with pytest.raises(NotBuiltError, match=r"[23] devices,.*One device works today"):
        resolve_devices(devices, ThreeChips())


def test_several_processes_on_the_cpu_are_not_built():
    with pytest.raises(NotBuiltError, match="devices=4, which is 4 devices"):
        resolve_devices(4, Accelerator())


@pytest.mark.parametrize("devices", ["two", 1.0, True, None, -2, ["0"], "0;1"])
def test_devices_of_another_kind_are_refused(devices):
    with pytest.raises(MisconfigurationError, match=r"is not understood. Use 'auto', a count"):
        resolve_devices(devices, ThreeChips())


# precision=


@pytest.mark.parametrize(
    ("given", "full"),
    [
        (16, "16-mixed"),
        ("16", "16-mixed"),
        (32, "32-true"),
        ("32", "32-true"),
        (64, "64-true"),
        ("bf16", "bf16-mixed"),
        ("bf16-true", "bf16-true"),
    ],
)
def test_precisions_are_spelled_out(given, full):
    assert canonical_precision(given) == full


@pytest.mark.parametrize("given", ["bf-16", 8, 16.0, True])
def test_an_unknown_precision_is_answered_with_the_list(given):
    with pytest.raises(ValueError, match=r"is unknown. Choose one of: 32-true, 16-mixed, bf16-mixed"):
        canonical_precision(given)


def test_the_nearest_precision_is_named():
    with pytest.raises(ValueError, match=r"Did you mean 'bf16-mixed'\?"):
        canonical_precision("bf16_mixed")


def test_transformer_engine_is_not_built():
    with pytest.raises(NotBuiltError, match=r"precision='transformer-engine'.*bf16-mixed"):
        canonical_precision("transformer-engine")


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        (None, Precision, "32-true"),
        ("32", Precision, "32-true"),
        ("bf16", MixedPrecision, "bf16-mixed"),
        ("16-true", HalfPrecision, "16-true"),
        ("bf16-true", HalfPrecision, "bf16-true"),
        (64, DoublePrecision, "64-true"),
    ],
)
def test_each_precision_has_its_class(given, kind, name):
    precision = resolve_precision(given, CPU)
    assert type(precision) is kind
    assert precision.name == name


def test_float16_on_the_cpu_becomes_bfloat16_and_says_so():
    with pytest.warns(LeydenWarning, match=r"precision=16 on the CPU is taken as 'bf16-mixed'.*LD151"):
        assert resolve_precision(16, CPU).name == "bf16-mixed"


@pytest.mark.gpu
def test_float16_is_kept_where_it_is_fast():
    assert resolve_precision(16, torch.device("cuda:0")).name == "16-mixed"


def test_float64_is_refused_on_mps():
    with pytest.raises(MisconfigurationError, match="mps, which has no float64"):
        resolve_precision("64", torch.device("mps"))


def test_a_precision_object_is_taken_as_it_is():
    precision = DoublePrecision()
    assert resolve_precision(precision, CPU) is precision


# strategy=, num_nodes=


@pytest.mark.parametrize("name", ["auto", "single_device"])
def test_one_device_is_the_plain_strategy(name):
    precision, checkpoint_io = DoublePrecision(), CheckpointIO()
    strategy = strategy_of(name, precision=precision, checkpoint_io=checkpoint_io)
    assert type(strategy) is Strategy
    assert (strategy.device, strategy.precision, strategy.checkpoint_io) == (CPU, precision, checkpoint_io)


@pytest.mark.parametrize(
    "name", ["ddp", "ddp_spawn_find_unused_parameters_true", "dp", "fsdp", "deepspeed_stage_3_offload", "xla"]
)
def test_strategies_that_lightning_has_are_not_built(name):
    with pytest.raises(NotBuiltError, match=f"strategy='{name}'.*strategy='auto'"):
        strategy_of(name)


def test_an_unknown_strategy_is_answered_with_the_list_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"strategy='single-device' is unknown.*auto, single_device.*'single_device'\?"
    ):
        strategy_of("single-device")


def test_several_nodes_are_not_built():
    with pytest.raises(NotBuiltError, match="num_nodes=2"):
        strategy_of("auto", num_nodes=2)


@pytest.mark.parametrize("num_nodes", [0, -1, 1.0, "1", True])
def test_num_nodes_is_a_count(num_nodes):
    with pytest.raises(ValueError, match="num_nodes="):
        strategy_of("auto", num_nodes=num_nodes)


def test_a_strategy_object_that_agrees_is_taken_as_it_is():
    strategy = Strategy("cpu", HalfPrecision("bf16-true"))
    assert strategy_of(strategy, precision=HalfPrecision("bf16-true")) is strategy


@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        (Strategy("meta"), "brings meta, but accelerator= and devices= choose cpu"),
        (Strategy("cpu", DoublePrecision()), "brings 64-true, but precision='32-true' is given"),
        (Strategy("cpu"), r"brings .*CheckpointIO.*, but plugins= has"),
    ],
)
def test_a_strategy_object_that_disagrees_is_refused(strategy, what):
    with pytest.raises(MisconfigurationError, match=what):
        strategy_of(strategy, checkpoint_io=CheckpointIO())


# plugins=, and all together


def test_plugins_may_be_a_precision_and_a_checkpoint_io():
    precision, checkpoint_io = DoublePrecision(), CheckpointIO()
    assert resolve_plugins([checkpoint_io, precision], None) == (precision, checkpoint_io)
    assert resolve_plugins(precision, None) == (precision, None)
    assert resolve_plugins(None, "bf16") == ("bf16", None)


def test_a_precision_given_twice_is_refused():
    with pytest.raises(MisconfigurationError, match=r"precision='32' and plugins=.*DoublePrecision"):
        resolve_plugins([DoublePrecision()], "32")


def test_two_plugins_of_a_kind_are_refused():
    with pytest.raises(MisconfigurationError, match="two of a kind"):
        resolve_plugins([CheckpointIO(), CheckpointIO()], None)


def test_a_plugin_of_another_kind_is_refused():
    with pytest.raises(MisconfigurationError, match="plugins='x' is not understood"):
        resolve_plugins(["x"], None)


def test_a_strategy_object_decides_what_is_left_open():
    strategy = Strategy("cpu", DoublePrecision())
    accelerator, resolved = resolve_hardware("auto", strategy, "auto", 1, None, None)
    assert accelerator.name == "cpu"
    assert resolved is strategy


def test_a_strategy_object_does_not_override_what_is_said():
    with pytest.raises(MisconfigurationError, match="brings 64-true"):
        resolve_hardware("auto", Strategy("cpu", DoublePrecision()), "auto", 1, "32-true", None)
