"""torch.compile(model) in the model's place: trained compiled as torch.compile was told, in the module's tensors."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
from leyden.callbacks import ModelCheckpoint
from leyden.core import compiling
from leyden.core.compiled_module import _options_of
from leyden.utilities.compile import from_compiled, to_uncompiled
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError
from models import TinyModel, tiny_data, tiny_loader
from recording import bare

# torch's own, at what it imports itself
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
OPTIONS_OF_COMPILE = inspect.signature(torch.compile).parameters


class Model(TinyModel):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


class Evaluated(Model):
    """With every step."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class Backend:
    """A backend that runs each graph as it is, counts how often, and keeps those it was given."""

    def __init__(self):
        self.graphs, self.runs = [], 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        self.graphs.append(graph)
        return run


@pytest.fixture
def backend():
    return Backend()


def trainer_of(epochs=2, **options):
    return leyden.Trainer(
        **{
            "max_epochs": epochs,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def fitted(model, data=None, val=None, ckpt_path=None, **options):
    trainer = trainer_of(**options)
    trainer.fit(model, DataLoader(tiny_data(64), 16) if data is None else data, val, ckpt_path=ckpt_path)
    return trainer


def assert_close(one, other, tolerance=1e-6):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance), name


@pytest.mark.parametrize("options", [{}, {"dynamic": False, "fullgraph": True}], ids=["", "with options"])
def test_a_compiled_module_trains_as_the_module_does(backend, options):
    module, plain = Model(), Model()
    compiled = torch.compile(module, backend=backend, **options)
    weight = module.net[0].weight
    trainer, expected = fitted(compiled), fitted(plain)
    assert len(backend.graphs) == 1
    assert_close(module, plain)
    metrics = [{name: float(value) for name, value in t.callback_metrics.items()} for t in (trainer, expected)]
    assert metrics[0].keys() == {"loss", "loss_step", "loss_epoch"} and metrics[0] == pytest.approx(
        metrics[1], abs=1e-6
    )
    assert trainer.lightning_module is trainer.model is module
    assert module.net[0].weight is weight
    x = torch.randn(3, 32)
    assert torch.allclose(compiled(x), plain(x), atol=1e-6)  # the wrapper goes on, with the weights that were trained


def test_checkpoints_are_those_of_the_module(tmp_path):
    loader, path = DataLoader(tiny_data(64), 16), str(tmp_path / "half.ckpt")
    trainer = fitted(torch.compile(Model("adam"), backend="eager"), loader)
    trainer.save_checkpoint(path)
    assert list(torch.load(path, weights_only=True)["state_dict"]) == list(Model().state_dict())
    resumed, whole = Model("adam"), Model("adam")
    fitted(torch.compile(resumed, backend="eager"), loader, ckpt_path=path, epochs=4)
    fitted(whole, loader, epochs=4)
    assert_close(resumed, whole)
    assert_close(Model.load_from_checkpoint(path), trainer.model, tolerance=0)


@pytest.mark.parametrize(
    ("options", "inductor", "dynamo"),
    [
        ({}, {}, {}),
        ({"mode": "max-autotune-no-cudagraphs"}, {"max_autotune": True, "coordinate_descent_tuning": True}, {}),
        ({"options": {"epilogue_fusion": False}, "dynamic": True}, {"epilogue_fusion": False}, {"dynamic": True}),
        (
            {"backend": "aot_eager", "dynamic": False, "recompile_limit": 3},
            None,
            {"dynamic": False, "recompile_limit": 3},
        ),
    ],
    ids=["none", "mode", "options", "limit"],
)
def test_what_torch_compile_was_given_is_found_again(options, inductor, dynamo):
    if not options.keys() <= OPTIONS_OF_COMPILE.keys():
        pytest.skip("this torch.compile has fewer options")
    found = _options_of(torch.compile(Model(), **options))
    assert (found.inductor, dict(found.dynamo), found.fullgraph) == (inductor, dynamo, False)


def test_options_reach_torchs_own_backend():
    seen = []
    options = {"post_grad_custom_post_pass": seen.append}
    name = {"name": "net"} if "name" in OPTIONS_OF_COMPILE else {}
    module, plain = Model(), Model()
    with torch._inductor.config.patch(compile_threads=1):
        fitted(torch.compile(module, options=options, **name))
    assert len(seen) == 2  # forward and backward
    fitted(plain)
    assert_close(module, plain)


def test_with_dynamic_shapes_a_batch_of_any_size_goes_the_compiled_way(backend):
    batches = [(torch.randn(size, 32), torch.randint(10, (size,))) for size in (16, 5, 9)]
    module, plain = Model(), Model()
    fitted(torch.compile(module, backend=backend, dynamic=True), batches)
    assert (len(backend.graphs), backend.runs) == (1, 6)
    fitted(plain, batches)
    assert_close(module, plain)


def test_recompilations_are_reported():
    batches = [(torch.randn(size, 32), torch.randint(10, (size,))) for size in [16, *range(2, 13)]]
    with pytest.warns(LeydenWarning, match=r"^torch\.compile\(model\): the step was compiled 2 times.*LD311"):
        fitted(torch.compile(Model(), backend="eager"), batches)


class Depends(Model):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss if loss > 2 else 2 * loss


def test_a_step_that_cannot_be_compiled_runs_as_it_is(backend):
    module, plain = Depends(), Depends()
    with pytest.warns(LeydenWarning, match=r"^torch\.compile\(model\): the step runs as it is, because torch .*LD310"):
        fitted(torch.compile(module, backend=backend))
    assert backend.graphs == []
    fitted(plain)
    assert_close(module, plain, tolerance=0)


def test_a_backend_that_fails_leaves_the_step_as_it_is():
    def fails(graph, inputs):
        raise RuntimeError("no such chip")

    with pytest.warns(LeydenWarning, match="because torch could not compile the step: .*no such chip.*LD310"):
        fitted(torch.compile(Model(), backend=fails))


def test_with_fullgraph_a_step_that_cannot_be_compiled_is_an_error():
    with pytest.raises(compiling.FAILURES, match="branch"):
        fitted(torch.compile(Depends(), backend="eager", fullgraph=True))


def test_the_trainer_says_what_is_compiled_and_torch_compile_how(backend):
    module, plain = Model(), Model()
    trainer = fitted(torch.compile(module, backend=backend), compile="step")
    updates = [node for node in backend.graphs[0].graph.nodes if "add" in str(node.target)]
    assert len(backend.graphs) == 1 and updates  # the optimizer's are in the graph
    assert trainer.options.compile == "step"
    fitted(plain)
    assert_close(module, plain)


def test_the_module_itself_is_not_compiled_afterwards(backend):
    module = Model()
    trainer = fitted(torch.compile(module, backend=backend))
    trainer.max_epochs = 4
    trainer.fit(module, DataLoader(tiny_data(64), 16))
    assert len(backend.graphs) == 1 and trainer.current_epoch == 4


def test_cuda_graphs_are_made_of_whole_steps_only(monkeypatch, capsys):
    found = _options_of(torch.compile(Model(), mode="reduce-overhead"))
    assert found.changed({"size_asserts": False}, replays=False) == {"size_asserts": False}
    assert found.changed({}, replays=True) == {"triton.cudagraphs": True}
    assert found.lets_replay and not _options_of(torch.compile(Model(), backend="eager")).lets_replay
    assert not _options_of(torch.compile(Model(), options={"triton.cudagraphs": False})).lets_replay
    monkeypatch.setattr(compiling, "can_replay", lambda device: True)
    with torch._inductor.config.patch(compile_threads=1):
        fitted(torch.compile(Model(), mode="reduce-overhead"), epochs=1)
    assert "torch.compile(model): without CUDA graphs" in capsys.readouterr().err


def test_evaluation_takes_the_module_as_it_is_and_says_so(backend, capsys):
    loader, module = DataLoader(tiny_data(64), 16), Evaluated()
    compiled = torch.compile(module, backend=backend)
    found = [trainer_of().validate(model, loader, verbose=False) for model in (compiled, module)]
    assert found[0] == found[1]
    predicted = trainer_of().predict(compiled, loader)
    assert torch.equal(torch.cat(predicted), module(tiny_data(64).tensors[0]))
    trainer_of().test(compiled, loader, verbose=False)
    assert backend.graphs == []
    said = capsys.readouterr().err
    assert [said.count(f"trainer.{fn}: only fit compiles") for fn in ("validate", "predict", "test")] == [1, 1, 1]


def test_the_module_just_fitted_is_tested_with_its_best_checkpoint(tmp_path, capsys):
    compiled, loader = torch.compile(Evaluated(), backend="eager"), DataLoader(tiny_data(64), 16)
    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = fitted(compiled, loader, loader, callbacks=[best], enable_checkpointing=True)
    trainer.test(compiled, loader, verbose=False)
    assert "trainer.test() uses the best checkpoint" in capsys.readouterr().err


def test_a_module_that_torch_shall_not_compile_trains_as_it_is():
    trainer = fitted(torch.compiler.disable(Model()))
    assert trainer.global_step == 8
    assert trainer._run.compiling is None


def test_what_a_module_is_compiled_with_must_be_known():
    compiled = torch.compile(Model(), backend="eager")
    del compiled.dynamo_ctx
    with pytest.raises(MisconfigurationError, match=r"does not say how.*Trainer\(compile='model'\)"):
        fitted(compiled)


@pytest.mark.skipif("shapes_spec" not in OPTIONS_OF_COMPILE, reason="this torch.compile has no shapes_spec")
def test_shapes_of_forwards_arguments_are_not_those_of_a_step():
    with pytest.raises(NotBuiltError, match=r"shapes_spec.*dynamic=True"):
        fitted(torch.compile(Model(), backend="eager", shapes_spec={"x": None}))


def test_a_compiled_module_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"needs a LightningModule, got OptimizedModule\. Make it an attribute"):
        fitted(torch.compile(nn.Linear(2, 2), backend="eager"))


# Compiled by torch itself.


def test_a_module_compiled_in_place_calls_the_compiled_forward_in_every_stage(backend):
    loader, module, plain = DataLoader(tiny_data(64), 16), Evaluated(), Model()
    module.compile(backend=backend)
    trainer = fitted(module, loader, loader)
    assert len(backend.graphs) == 2  # with gradients and without
    fitted(plain, loader)
    assert_close(module, plain)
    assert list(trainer.model.state_dict()) == list(plain.state_dict())


def test_checkpoints_of_compiled_parts_load_into_modules_without_them_and_back(tmp_path, backend):
    class Parts(Model):
        def __init__(self, seed=0):
            super().__init__(seed=seed)
            self.net = torch.compile(self.net, backend=backend)

    loader = DataLoader(tiny_data(64), 16)
    parts, plain = Parts(), Model()
    fitted(parts, loader).save_checkpoint(tmp_path / "parts.ckpt")
    fitted(plain, loader).save_checkpoint(tmp_path / "plain.ckpt")
    assert len(backend.graphs) == 1
    assert_close(parts, plain)
    assert "net._orig_mod.0.weight" in torch.load(tmp_path / "parts.ckpt")["state_dict"]  # as its own state_dict says
    for saved, module in (("parts", parts), ("plain", plain)):
        for kind in (Parts, Model):
            loaded = kind.load_from_checkpoint(tmp_path / f"{saved}.ckpt")
            assert_close(loaded, module, tolerance=0)
    resumed = Model(seed=3)
    trainer = fitted(resumed, loader, ckpt_path=tmp_path / "parts.ckpt", epochs=3)
    fitted(plain, loader, ckpt_path=tmp_path / "plain.ckpt", epochs=3)
    assert trainer.global_step == 12
    assert_close(resumed, plain)


# Lightning's functions.


def test_lightnings_functions_wrap_and_unwrap(backend):
    module = Model()
    compiled = torch.compile(module, backend=backend)
    assert from_compiled(compiled) is module
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    fitted(module)
    assert len(backend.graphs) == 1
    assert to_uncompiled(module) is to_uncompiled(compiled) is module
    fitted(module)
    assert len(backend.graphs) == 1
    fitted(copies[1])  # few backends can be pickled
    assert len(backend.graphs) == 1
    fitted(copies[0])
    assert len(backend.graphs) == 2


@pytest.mark.parametrize(
    ("function", "model", "got"),
    [
        (from_compiled, Model(), "got Model"),
        (from_compiled, torch.compile(nn.Linear(2, 2), backend="eager"), "got a compiled Linear"),
        (to_uncompiled, Model(), "got Model"),
        (to_uncompiled, nn.Linear(2, 2), "got Linear"),
        (to_uncompiled, torch.compile(nn.Linear(2, 2), backend="eager"), "got a compiled Linear"),
    ],
)
def test_lightnings_functions_take_compiled_lightning_modules(function, model, got):
    with pytest.raises(ValueError, match=rf"{function.__name__} takes .*{got}\.$"):
        function(model)


def test_an_option_that_a_hook_sets_leaves_the_module_compiled():
    class Setting(TinyModel):
        def setup(self, stage):
            self.trainer.max_steps = 3

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    trainer = bare()
    trainer.fit(torch.compile(Setting(), backend=backend), list(tiny_loader(6)))
    assert graphs and trainer.global_step == 3
