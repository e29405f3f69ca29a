"""LightningModule.to_onnx, to_torchscript, to_exported_program: a module as a file for other programs."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import leyden
from leyden.core.module import LightningModule
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError
from models import TinyModel, tiny_loader

X = torch.linspace(-1, 1, 64).reshape(2, 32)
DEPRECATED = pytest.mark.filterwarnings(r"ignore:TorchScript is deprecated.*LD214")


class Dropping(LightningModule):
    """Its output tells training from evaluation, by dropout, and one of its layers stays in evaluation mode."""

    def __init__(self, example=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
        self.net[2].eval()
        self.example_input_array = example

    def forward(self, x):
        return self.net(x)


class Sum(LightningModule):
    """Takes two arguments."""

    def forward(self, left, right):
        return left - 2 * right


def expected(model, *inputs, **named):
    modes = [part.training for part in model.modules()]
    model.eval()
    with torch.no_grad():
        found = model(*inputs, **named)
    for part, training in zip(model.modules(), modes, strict=True):
        part.training = training
    return found


def modes(model):
    return [part.training for part in model.modules()]


def test_an_exported_program_computes_what_the_module_does_in_evaluation_mode(tmp_path):
    model = Dropping()
    program = model.to_exported_program(tmp_path / "new" / "model.pt2", X)
    assert torch.equal(program.module()(X), expected(model, X))
    assert torch.equal(torch.export.load(tmp_path / "new" / "model.pt2").module()(X), expected(model, X))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt2"]


def test_a_dimension_may_vary():
    program = Dropping().to_exported_program(example_inputs=X, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert program.module()(torch.ones(7, 32)).shape == (7, 8)


@DEPRECATED
@pytest.mark.parametrize(("method", "example"), [("script", None), ("trace", X)])
def test_torchscript_computes_what_the_module_does_in_evaluation_mode(tmp_path, method, example):
    model = Dropping(example)
    script = model.to_torchscript(tmp_path / "model.pt", method)
    assert torch.equal(script(X), expected(model, X))
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        loaded = torch.jit.load(tmp_path / "model.pt")
    assert torch.equal(loaded(X), expected(model, X))


@DEPRECATED
def test_torchscript_is_made_of_a_module_that_belongs_to_a_trainer(tmp_path):
    model = TinyModel()
    model.save_hyperparameters({"lr": 0.1})
    model.example_input_array = X
    trainer = leyden.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model, tiny_loader())
    for method in ("script", "trace"):
        assert torch.equal(model.to_torchscript(method=method)(X), expected(model, X))
    assert torch.equal(model.to_exported_program().module()(X), expected(model, X))
    assert model.trainer is trainer


def test_torchscript_is_said_to_be_deprecated():
    with pytest.warns(LeydenWarning, match=r"to_exported_program.*\[LD214\]"):
        Dropping().to_torchscript()


@DEPRECATED
def test_modes_random_numbers_gradients_and_attributes_are_as_before():
    model = Dropping(X)
    before, attributes, random = modes(model), set(vars(model)), torch.get_rng_state()
    assert before == [True, True, True, True, False]
    model.to_exported_program()
    model.to_torchscript()
    model.to_torchscript(method="trace")
    assert modes(model) == before
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.parameters())


@DEPRECATED
def test_modes_are_as_before_after_a_failure_and_nothing_is_written(tmp_path):
    model = Dropping()
    before = modes(model)
    with pytest.raises(RuntimeError, match=r"2.?x.?3|2, 3"):
        model.to_exported_program(tmp_path / "model.pt2", torch.ones(2, 3))
    with pytest.raises(RuntimeError, match=r"2.?x.?3|2, 3"):
        model.to_torchscript(tmp_path / "model.pt", "trace", torch.ones(2, 3))
    assert modes(model) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "example", [(torch.ones(2), torch.arange(2.0)), {"right": torch.arange(2.0), "left": torch.ones(2)}]
)
@DEPRECATED
def test_examples_are_a_tuple_of_arguments_or_a_dict_of_keyword_arguments(example):
    model = Sum()
    model.example_input_array = example
    inputs = (example, {}) if isinstance(example, tuple) else ((), example)
    for exported in (model.to_exported_program().module(), model.to_torchscript(method="trace")):
        assert exported(*inputs[0], **inputs[1]).tolist() == [1.0, -1.0]


@DEPRECATED
def test_a_binary_file_is_taken_for_a_path():
    model, program, script = Dropping(X), io.BytesIO(), io.BytesIO()
    model.to_exported_program(program)
    model.to_torchscript(script)
    program.seek(0)
    assert torch.equal(torch.export.load(program).module()(X), expected(model, X))
    assert script.getvalue()[:2] == b"PK"


@DEPRECATED
@pytest.mark.parametrize(
    "export",
    [
        lambda model: model.to_onnx("model.onnx"),
        lambda model: model.to_torchscript(method="trace"),
        lambda model: model.to_exported_program(),
    ],
)
def test_without_an_input_the_error_says_how_to_give_one(export):
    with pytest.raises(ValueError, match=r"Dropping\.to_\w+ needs an input.*Dropping\.example_input_array"):
        export(Dropping())


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method='scrip'.*Did you mean 'script'"):
        Dropping().to_torchscript(method="scrip")


def test_inputs_that_scripting_would_ignore_are_refused():
    with pytest.raises(MisconfigurationError, match="method='trace'"):
        Dropping().to_torchscript(example_inputs=X)


def test_tensorrt_is_not_built():
    with pytest.raises(NotBuiltError, match="to_exported_program"):
        Dropping().to_tensorrt("model.ts", X)


def test_on_one_device_there_is_no_mesh():
    assert Dropping().device_mesh is None


@pytest.mark.skipif(find_spec("onnx") is not None, reason="onnx is installed")
def test_without_onnx_the_error_is_the_pip_command():
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
        Dropping(X).to_onnx("model.onnx")


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_onnx_computes_what_the_module_does_in_evaluation_mode(tmp_path):
    model = Dropping(X)
    program = model.to_onnx(tmp_path / "new" / "model.onnx")
    torch.testing.assert_close(program(X)[0], expected(model, X))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"model.onnx", "model.onnx.data"}
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "new" / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(model, X))
    assert model.to_onnx() is not None
    model.to_onnx(file := io.BytesIO())
    assert file.getvalue()


@pytest.mark.gpu
def test_inputs_go_to_the_modules_device():
    model = Dropping().cuda()
    program = model.to_exported_program(example_inputs=X)
    torch.testing.assert_close(program.module()(X.cuda()), expected(model, X.cuda()))


def test_exporting_is_loaded_when_it_is_used():
    code = "import sys, leyden; leyden.LightningModule; print('leyden.core.export' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"
