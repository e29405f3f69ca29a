"""summarize: a module's layers, their parameters, sizes and FLOPs, and that looking changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leyden.utils.errors import LeydenWarning
from leyden.utils.summary import LayerSummary, summarize


class Net(nn.Module):
    """An MLP 32-32-10, and a parameter of its own with three numbers."""

    def __init__(self, example: Any = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5), nn.Linear(32, 10))
        self.norm = nn.BatchNorm1d(10)
        self.scale = nn.Parameter(torch.ones(3))
        self.example_input_array = example

    def forward(self, x: Tensor, shift: Tensor | float = 0.0) -> dict[str, Any]:
        logits = self.norm(self.net(x) + shift)
        return {"logits": logits}


def by_name(module: nn.Module, max_depth: int = 1) -> dict[str, LayerSummary]:
    return {layer.name: layer for layer in summarize(module, max_depth).layers}


def test_it_reads_as_a_table():
    net = Net(torch.zeros(2, 32))
    net.norm.requires_grad_(False).eval()
    assert str(summarize(net)) == "\n".join(
        [
            "┌───────────┬─────────────┬────────────┬───────┬───────┬─────────┬─────────┐",
            "│ name      │        type │ parameters │  mode │ FLOPs │      in │     out │",
            "├───────────┼─────────────┼────────────┼───────┼───────┼─────────┼─────────┤",
            "│ net       │  Sequential │      1,386 │ train │ 5,376 │ [2, 32] │ [2, 10] │",
            "│ norm      │ BatchNorm1d │         20 │  eval │     0 │ [2, 10] │ [2, 10] │",
            "│ (its own) │         Net │          3 │ train │       │         │         │",
            "└───────────┴─────────────┴────────────┴───────┴───────┴─────────┴─────────┘",
            "Parameters: 1,409 (1,389 trainable, 20 frozen), 0.006 MB",
            "Modules: 5 (4 in train mode, 1 in eval mode)",
            "FLOPs: 5,376 in one forward pass of the example",
        ]
    )


def test_without_an_example_there_are_no_sizes_and_no_flops():
    assert summarize(nn.Linear(2, 2)).total_flops is None
    assert str(summarize(nn.Sequential(nn.Linear(2, 2)))).splitlines()[1] == "│ name │   type │ parameters │  mode │"


@pytest.mark.parametrize(
    ("max_depth", "names"),
    [
        (0, []),
        (1, ["net", "norm", "(its own)"]),
        (2, ["net", "net.0", "net.1", "net.2", "norm", "(its own)"]),
        (-1, ["net", "net.0", "net.1", "net.2", "norm", "(its own)"]),
    ],
)
def test_depth_is_how_many_levels_are_listed(max_depth, names):
    table = summarize(Net(), max_depth)
    assert [layer.name for layer in table.layers] == names
    assert (table.total_parameters, table.modules_in_train_mode) == (1409, 5)


def test_depth_zero_is_the_totals_alone():
    assert str(summarize(Net(), 0)).splitlines() == [
        "Parameters: 1,409 (1,409 trainable, 0 frozen), 0.006 MB",
        "Modules: 5 (5 in train mode, 0 in eval mode)",
    ]


@pytest.mark.parametrize(("max_depth", "error"), [(-2, ValueError), (1.0, TypeError), (True, TypeError)])
def test_other_depths_are_refused(max_depth, error):
    with pytest.raises(error, match=rf"max_depth={max_depth}.*-1.*0"):
        summarize(Net(), max_depth)


def test_shared_parameters_count_once_in_the_totals_and_once_in_every_layer():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.both = nn.ModuleList([self.embed, self.head])

    table = summarize(Tied())
    assert [layer.parameters for layer in table.layers] == [40, 40, 40]
    assert (table.total_parameters, table.bytes) == (40, 160)


def test_bytes_are_those_of_the_types_at_hand():
    module = nn.ModuleList([nn.Linear(2, 3).half(), nn.Linear(2, 3), nn.Linear(2, 3).double()])
    assert summarize(module).bytes == 9 * (2 + 4 + 8)


def test_lazy_layers_are_said_to_be_uncounted_and_stay_lazy():
    module = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    module.example_input_array = torch.zeros(1, 2)
    table = summarize(module)
    assert [layer.parameters for layer in table.layers] == [6, 0]
    assert (table.total_parameters, table.bytes) == (6, 24)
    assert str(table).splitlines()[-1].startswith("Lazy layers count no parameters")
    assert isinstance(module[1], nn.LazyLinear)


def test_a_module_with_nothing_inside_has_totals():
    assert str(summarize(nn.Module())).splitlines() == [
        "Parameters: 0 (0 trainable, 0 frozen), 0.000 MB",
        "Modules: 0 (0 in train mode, 0 in eval mode)",
    ]
    assert [(layer.name, layer.parameters) for layer in summarize(nn.Linear(2, 2)).layers] == [("(its own)", 6)]


# The example.


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(2, 32),
        (torch.zeros(2, 32),),
        (torch.zeros(2, 32), 1.0),
        {"x": torch.zeros(2, 32), "shift": torch.zeros(2, 1)},
    ],
)
def test_an_example_is_a_tensor_or_arguments_or_keyword_arguments(example):
    layers = by_name(Net(example), -1)
    assert (layers["net.0"].in_size, layers["net.2"].out_size) == ("[2, 32]", "[2, 10]")


class Returning(nn.Module):
    def __init__(self, result: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.result(x)


@pytest.mark.parametrize(
    ("result", "size"),
    [
        (lambda x: x, "[2, 3]"),
        (lambda x: (x, x[0]), "[[2, 3], [3]]"),
        (lambda x: [x], "[2, 3]"),
        (lambda x: (x, (x, x)), "[[2, 3], [[2, 3], [2, 3]]]"),
        (lambda x: {"a": x, "b": x.sum()}, "[[2, 3], []]"),
        (lambda x: (x, None, "text"), "[2, 3]"),
        (lambda x: None, ""),
    ],
)
def test_sizes_are_nested_as_the_outputs_are(result, size):
    module = nn.Sequential(Returning(result))
    module.example_input_array = torch.zeros(2, 3)
    assert by_name(module)["0"].out_size == size


def test_keyword_arguments_count_as_inputs():
    class Outer(nn.Module):
        example_input_array = torch.zeros(2, 3)

        def __init__(self) -> None:
            super().__init__()
            self.inner = Returning(lambda x: x)

        def forward(self, x: Tensor) -> Any:
            self.inner(x, mask=x[0])
            return self.inner(x[:1])

    assert by_name(Outer())["inner"].in_size == "[[2, 3], [3]]"


def test_a_layer_that_is_not_called_has_no_sizes_and_no_flops():
    net = Net(torch.zeros(2, 32))
    net.unused = nn.Linear(1, 1)
    unused = by_name(net)["unused"]
    assert (unused.in_size, unused.out_size, unused.flops) == ("", "", None)


def test_flops_are_those_of_all_calls_at_every_level():
    class Twice(nn.Module):
        example_input_array = torch.zeros(3, 4)

        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(x))) @ torch.ones(2, 5)

    table = summarize(Twice(), -1)
    block, head, product = 2 * 3 * 4 * 4, 2 * 3 * 4 * 2, 2 * 3 * 2 * 5
    assert {layer.name: layer.flops for layer in table.layers} == {
        "block": 2 * block,
        "block.0": 2 * block,
        "block.1": 0,
        "head": head,
    }
    assert table.total_flops == 2 * block + head + product


def test_a_layer_that_calls_itself_counts_once():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, levels: int = 2) -> Tensor:
            return self.linear(x) if levels == 0 else self(self.linear(x), levels - 1)

    module = nn.Sequential(Deep())
    module.example_input_array = torch.zeros(1, 2)
    assert by_name(module)["0"].flops == 3 * 2 * 2 * 2


def test_flops_of_attention_and_recurrent_layers_count():
    class Words(nn.Module):
        example_input_array = torch.zeros(1, 3, 4)

        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.read = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.read(self.attend(x))

    layers = by_name(Words())
    assert layers["attend"].flops == 2 * 3 * (4 * 4 * 4 + 2 * 3 * 4 + 2 * 4 * 8)
    assert layers["read"].flops == 2 * 3 * 2 * 16 * 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_cannot_be_watched_and_the_others_are():
    module = nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.Linear(3, 2))
    module.example_input_array = torch.zeros(2, 4)
    table = summarize(module)
    assert [(layer.in_size, layer.flops) for layer in table.layers] == [("", None), ("[2, 3]", 24)]
    assert table.total_flops == 48 + 24


def test_the_example_takes_the_place_and_the_type_of_the_parameters():
    assert by_name(Net(torch.zeros(2, 32)).double())["net"].out_size == "[2, 10]"
    assert by_name(Net(torch.zeros(2, 32)).to("meta"))["net"].out_size == "[2, 10]"


def test_whole_numbers_stay_whole():
    module = nn.Sequential(nn.Embedding(5, 2)).double()
    module.example_input_array = torch.tensor([[1, 2, 3]])
    assert by_name(module)["0"].out_size == "[1, 3, 2]"


def test_looking_changes_nothing():
    net = Net(torch.randn(4, 32))
    net.net[0].eval()
    net.net.register_forward_hook(lambda *_: None)
    modes = {name: module.training for name, module in net.named_modules()}
    values = {name: value.clone() for name, value in net.state_dict().items()}
    hooks = len(net.net._forward_hooks)
    before = torch.get_rng_state(), random.getstate()
    summarize(net, -1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert (len(net.net._forward_hooks), len(net.norm._forward_hooks)) == (hooks, 0)
    assert not net.net._forward_pre_hooks
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_call_is_in_eval_mode_and_without_gradients_and_whatever_train_is():
    seen = []

    class Watching(nn.Module):
        example_input_array = torch.zeros(1)

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()
            self.weight = nn.Parameter(torch.ones(1))

        def train(self, mode: bool = True) -> Watching:
            raise AssertionError("train() was called")

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1)
            seen.append((self.training, self.inner.training, (x * self.weight).requires_grad))
            return self.inner(x)

    summarize(module := Watching())
    assert seen == [(False, False, False)]
    assert module.training and module.inner.training


def test_an_example_that_fails_is_a_warning_and_the_rest_is_shown():
    net = Net(torch.zeros(2, 31))
    with pytest.warns(LeydenWarning, match=r"Net could not be called.*RuntimeError.*31.*\[LD120\]"):
        table = summarize(net)
    assert (table.total_parameters, table.total_flops) == (1409, None)
    assert net.training and not net.net._forward_hooks and not net.net._forward_pre_hooks


def test_nothing_is_compiled_for_it():
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    net = Net(torch.zeros(2, 32))
    net.net = torch.compile(net.net, backend=backend)
    assert by_name(net)["net"].out_size == "[2, 10]"


def test_it_is_not_run_for_the_totals_alone():
    class Failing(nn.Linear):
        example_input_array = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("forward was called")

    assert summarize(nn.Sequential(Failing(1, 1)), 0).total_parameters == 2
