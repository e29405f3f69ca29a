"""compile="step": whatever changes between two steps is seen by the next one, as in the step as it is."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
from leyden.core import compiling
from leyden.utils.errors import LeydenWarning, NonFiniteLossError
from models import TinyModel, tiny_data


@pytest.fixture(autouse=True, scope="module")
def one_process_compiles():
    with torch._inductor.config.patch(compile_threads=1):
        yield


class Model(TinyModel):
    """TinyModel with dropout, a number that the step reads, and Adam."""

    def __init__(self, make=torch.optim.Adam, **options):
        super().__init__()
        self.net.insert(1, nn.Dropout(0.3))
        self.make, self.options = make, {"lr": 0.01, **options}
        self.scale = 1.0

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch) * self.scale
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.make(self.parameters(), **self.options)


class Changes(leyden.Callback):
    """Makes one change before each step but the first two, and keeps weights and optimizer state after each."""

    def __init__(self, *changes):
        self.changes, self.seen = changes, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        number = trainer.global_step - 2
        if 0 <= number < len(self.changes):
            self.changes[number](module, trainer.optimizers[0])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        self.seen.append(
            [
                *(("weight", p.detach().clone()) for p in module.parameters()),
                *((name, value.clone()) for p in module.parameters() for name, value in optimizer.state[p].items()),
                ("loss", torch.as_tensor(float(outputs["loss"]))),
            ]
        )


def fitted(model, changes, compile, steps=None, **options):
    torch.manual_seed(5)
    callback = Changes(*changes)
    trainer = leyden.Trainer(
        max_steps=steps or len(changes) + 3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        compile=compile,
        callbacks=[callback],
        **{"accelerator": "cpu", "devices": 1, **options},
    )
    trainer.fit(model, DataLoader(tiny_data(64), 16))
    return trainer, callback.seen


def assert_alike(model, *changes, **options):
    """Every step changes the same with ``compile="step"`` as without."""
    plain = copy.deepcopy(model)
    _, expected = fitted(plain, changes, None, **options)
    trainer, found = fitted(model, changes, "step", **options)
    assert_close(found, expected)
    return trainer


def assert_close(found, expected):
    for step, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
        for (name, a), (_, b) in zip(one, other, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-5), f"{name} after step {step}"


def quietly(function):
    """``function``, a change that names what of the module or the optimizer it changes."""
    return torch.no_grad()(function)


def groups(**values):
    return lambda module, optimizer: [group.update(values) for group in optimizer.param_groups]


def to_eval(module, optimizer):
    module.net.eval()


def to_train(module, optimizer):
    module.net.train()


def other_scale(module, optimizer):
    module.scale = 3.0


@quietly
def weights_in_place(module, optimizer):
    module.net[0].weight.mul_(0.5)


@quietly
def average_in_place(module, optimizer):
    optimizer.state[module.net[0].bias]["exp_avg"].mul_(-2)


@quietly
def data_elsewhere(module, optimizer):
    module.net[0].weight.data = module.net[0].weight.data.clone() * 2


def average_replaced(module, optimizer):
    state = optimizer.state[module.net[-1].weight]
    state["exp_avg"] = torch.ones_like(state["exp_avg"])


def state_replaced(module, optimizer):
    optimizer.state[module.net[-1].bias] = copy.deepcopy(optimizer.state[module.net[-1].bias])


def state_loaded(module, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for own in state["state"].values():
        own["step"] += 10
    optimizer.load_state_dict(state)


@quietly
def steps_in_place(module, optimizer):
    for state in optimizer.state.values():
        state["step"].fill_(100)


def hook_added(module, optimizer):
    module.net[0].register_forward_hook(lambda part, args, output: output * 1.5)


def test_numbers_of_the_optimizer_are_read_at_each_step():
    trainer = assert_alike(
        Model(weight_decay=0.1),
        *(groups(lr=0.1), groups(lr=0.001, betas=(0.8, 0.9)), groups(eps=1e-3), groups(lr=0, weight_decay=0.2)),
    )
    assert trainer._running.compiling.mode == "step"
    assert len(trainer._running.compiling.compilations) == 1


@pytest.mark.slow
def test_an_option_that_is_part_of_the_graph_is_compiled():
    with pytest.warns(LeydenWarning, match="compiled 2 times.*LD311"):
        trainer = assert_alike(Model(torch.optim.SGD), groups(maximize=True), groups(maximize=False))
    assert trainer._running.compiling.mode == "step"


def test_the_module_may_be_changed_between_steps():
    changes = to_eval, to_train, other_scale, weights_in_place, data_elsewhere, hook_added
    with pytest.warns(LeydenWarning, match="compiled 4 times.*training == True.*LD311"):
        trainer = assert_alike(Model(), *changes)
    assert trainer._running.compiling.mode == "step"


def test_a_hook_that_is_added_is_called_where_the_model_alone_is_compiled():
    model, plain = Model(), Model()
    with pytest.warns(LeydenWarning, match="LD311"):
        _, found = fitted(model, (hook_added,), "model")
    _, expected = fitted(plain, (hook_added,), None)
    assert_close(found, expected)


def test_the_optimizers_state_may_be_changed_between_steps():
    changes = average_in_place, average_replaced, state_replaced, state_loaded, weights_in_place, steps_in_place
    trainer = assert_alike(Model(), *changes)
    assert trainer._running.compiling.mode == "step"
    assert len(trainer._running.compiling.compilations) == 1


@quietly
def one_step_in_place(module, optimizer):
    optimizer.state[module.net[-1].weight]["step"].fill_(50)


def no_state(module, optimizer):
    del optimizer.state[module.net[-1].bias]


def another_parameter(module, optimizer):
    module.net[-1].bias = nn.Parameter(torch.ones_like(module.net[-1].bias))


def another_layer(module, optimizer):
    module.net[-1] = nn.Linear(32, 10)


def another_parameter_of_both(module, optimizer):
    old, new = module.net[-1].bias, nn.Parameter(torch.ones_like(module.net[-1].bias))
    module.net[-1].bias = new
    params = optimizer.param_groups[0]["params"]
    params[[p is old for p in params].index(True)] = new
    optimizer.state.pop(old)


def frozen(module, optimizer):
    module.net[0].requires_grad_(False)


def another_group(module, optimizer):
    module.extra = nn.Parameter(torch.ones(()))
    optimizer.add_param_group({"params": [module.extra], "lr": 0.3})
    module.scale = 2.0


@pytest.mark.parametrize(
    "change",
    [one_step_in_place, no_state, another_parameter, another_layer, another_parameter_of_both, frozen, another_group],
    ids=lambda change: change.__name__,
)
def test_what_the_graph_is_not_for_is_seen_at_once(change):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=LeydenWarning)  # LD310 where the step goes on as it is
        torch.manual_seed(7)
        model, plain = Model(), Model()
        plain.load_state_dict(model.state_dict())
        _, expected = fitted(plain, (torch_seeded(change),), None, steps=6)
        _, found = fitted(model, (torch_seeded(change),), "step", steps=6)
    assert_close(found, expected)


def torch_seeded(change):
    """``change``, drawing the same random numbers whenever it is made, and none of the training's."""

    def seeded(module, optimizer):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            change(module, optimizer)

    return seeded


def test_counts_of_steps_are_torchs_own_tensors_one_for_each_parameter(tmp_path):
    kept = {}

    def keep(module, optimizer):
        kept.update({p: state["step"] for p, state in optimizer.state.items()})

    trainer = assert_alike(Model(), keep)
    optimizer = trainer.optimizers[0]
    steps = [optimizer.state[p]["step"] for p in trainer.lightning_module.parameters()]
    assert all(state["step"] is kept[p] for p, state in optimizer.state.items())
    assert [(step.shape, float(step)) for step in steps] == [((), 4.0)] * 4
    steps[0] += 1
    assert [float(step) for step in steps] == [5.0, 4.0, 4.0, 4.0]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert [float(state["step"]) for state in read.values()] == [5.0, 4.0, 4.0, 4.0]


def test_two_groups_keep_their_own_numbers():
    class Two(Model):
        def configure_optimizers(self):
            first, *rest = self.parameters()
            return torch.optim.AdamW([{"params": [first], "lr": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01)

    def second_only(module, optimizer):
        optimizer.param_groups[1]["lr"] = 0.2

    trainer = assert_alike(Two(), second_only)
    assert trainer._running.compiling.mode == "step"


def test_a_graph_that_fits_is_run_without_asking_torch_to_compile():
    asked = []
    backend = torch._dynamo.eval_frame.OptimizeContext.__call__

    def noting(self, function):
        compiled = backend(self, function)

        def call(*args):
            asked.append(function.__name__)
            return compiled(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.eval_frame.OptimizeContext, "__call__", noting)
        with pytest.warns(LeydenWarning, match="training == True.*LD311"):
            fitted(Model(), (to_eval,), "step", steps=8)
    assert len(asked) == 2  # once for each mode of the dropout


def test_a_stance_of_torchs_holds_from_the_next_step_on():
    found = []

    class Tells(Model):
        def training_step(self, batch, batch_idx):
            self.compiles = torch.compiler.is_compiling()
            return self.loss(batch)

    def note(module, optimizer):
        found.append(module.compiles)

    def eager(module, optimizer):
        torch.compiler.set_stance("force_eager")

    try:
        fitted(Tells(), (note, note, note, eager, note, note), "step")
    finally:
        torch.compiler.set_stance("default")
    assert found == [True, True, True, False, False]


def test_where_torchs_compiler_is_switched_off_the_step_runs_as_it_is(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    trainer = assert_alike(Model(), groups(lr=0.1))
    assert trainer._running.compiling.compilations == []


def test_no_gradients_are_left_by_a_compiled_step():
    for compile in ("step", "auto"):
        trainer, _ = fitted(Model(), (), compile, steps=4)
        if trainer._running.compiling.mode == "step":
            assert [p.grad for p in trainer.lightning_module.parameters()] == [None] * 4


def test_what_a_step_makes_and_keeps_is_made_by_its_own_code():
    class Kept(dict):
        def __setitem__(self, name, value):
            super().__setitem__(name, value * 2)

    class Keeps(Model):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            kept = Kept()
            kept["loss"] = loss.detach()
            self.kept = kept
            return loss

    found = {}
    for compile in (None, "step"):
        torch.manual_seed(1)
        model = Keeps()
        fitted(model, (), compile, steps=5)
        found[compile] = float(model.kept["loss"])
    assert found["step"] == pytest.approx(found[None], abs=1e-5)


@pytest.mark.parametrize("replays", [False, True])
def test_torchs_compiler_is_told_of_cuda_graphs_where_there_are_any(replays):
    found = compiling.inductor_options(torch.fx.symbolic_trace(nn.Linear(2, 2)), replays)
    graphs = {"triton.cudagraphs": True, "triton.cudagraph_skip_dynamic_graphs": True}
    assert found == {"fallback_random": True, "size_asserts": False, **(graphs if replays else {})}
    for name in found:
        assert name in torch._inductor.config.get_config_copy()
    assert compiling.can_replay(torch.device("cuda", 0)) and not compiling.can_replay(torch.device("cpu"))


def test_what_an_operator_that_is_not_torchs_gives_is_checked():
    def step(x):
        return torch.ops.leyden_tests.twice(x)

    with torch.library._scoped_library("leyden_tests", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        graph = torch.fx.symbolic_trace(step)
        assert compiling.inductor_options(graph, False)["size_asserts"]


def test_what_a_replayed_graph_gives_outlasts_the_next_replay():
    memory, weight = torch.zeros(2), torch.ones(3)

    def replay(batch, weight):
        memory.copy_(batch)
        return memory, weight[1:], memory, 3

    run = compiling.handing_out_copies(replay)
    first, second = run(torch.tensor([1.0, 2.0]), weight), run(torch.tensor([3.0, 4.0]), weight)
    assert [given[0].tolist() for given in (first, second)] == [[1, 2], [3, 4]]
    assert all(given[0] is given[2] and given[3] == 3 for given in (first, second))
    first[1].zero_()
    assert weight.tolist() == [1, 0, 0]  # what is an input's memory stays the input's


def test_as_for_a_cuda_graph_all_that_it_changes_is_marked(monkeypatch):
    monkeypatch.setattr(compiling, "can_replay", lambda device: True)  # torch says that a CPU has none, and goes on
    backend, mutated = compiling.Compiling._backend, []

    def noting(self, graph, inputs):
        for node in graph.graph.nodes:
            if node.target == "copy_":
                kind = node.args[0].meta["tensor_dict"].get("_dynamo_static_input_type")
                mutated.append((node.args[0].op, kind))
        return backend(self, graph, inputs)

    monkeypatch.setattr(compiling.Compiling, "_backend", noting)
    trainer = assert_alike(Model(), groups(lr=0.1))
    assert mutated == [("placeholder", "unguarded")] * 12  # four parameters, and two averages of each
    marks = [vars(v) for state in trainer.optimizers[0].state.values() for v in state.values()]
    assert marks == [{}] * 12


# On a GPU.


class Logs(TinyModel):
    """TinyModel that logs, keeps what its last step gave, for the next, and whose learning rate falls at each step."""

    def __init__(self):
        super().__init__()
        self.last, self.counted = torch.zeros(()), torch.zeros(())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("change", loss.detach() - self.last, on_step=True)
        self.last = loss.detach()
        return {"loss": loss, "twice": loss.detach() * 2}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Holds(leyden.Callback):
    """Holds, to the end, the very tensors that each step gave."""

    def __init__(self):
        self.metrics, self.outputs = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append(dict(trainer.callback_metrics))
        self.outputs.append(outputs)


def trained_on_gpu(compile, data, **options):
    torch.manual_seed(5)
    holds = Holds()
    model = Logs()
    model.last = model.last.cuda()
    trainer = leyden.Trainer(
        max_epochs=4,
        accelerator="gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        compile=compile,
        callbacks=[holds],
        **options,
    )
    trainer.fit(model, data)
    return trainer, model.cpu(), holds


@pytest.mark.gpu
def test_steps_that_are_replayed_on_a_gpu_train_log_and_give_what_the_step_does():
    data = DataLoader(tiny_data(7 * 16 + 5), 16)  # the last batch of an epoch takes the step as it is
    expected, plain, of_plain = trained_on_gpu(None, data)
    torch._dynamo.utils.counters.clear()
    trainer, model, held = trained_on_gpu("step", data)
    assert trainer._running.compiling.mode == "step"
    assert len(trainer._running.compiling.compilations) == 1
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    assert "loss_step" in held.metrics[0]
    for found, other in zip(held.metrics, of_plain.metrics, strict=True):
        assert found.keys() == other.keys()
        for name, value in other.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-4), name
    for found, other in zip(held.outputs, of_plain.outputs, strict=True):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in other.items()}, abs=1e-4
        )
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-4), name
    steps = [float(state["step"]) for state in trainer.optimizers[0].state.values()]
    assert steps == [float(state["step"]) for state in expected.optimizers[0].state.values()] == [32.0] * 4


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_stops_replayed_steps_before_the_weights_change():
    good = [(torch.randn(16, 32), torch.randint(10, (16,))) for _ in range(6)]
    bad = (torch.full((16, 32), float("nan")), torch.randint(10, (16,)))
    _, plain, _ = trained_on_gpu("step", good, max_steps=6)
    torch.manual_seed(5)
    model = Logs()
    model.last = model.last.cuda()
    trainer = leyden.Trainer(
        max_epochs=1,
        accelerator="gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        compile="step",
    )
    with pytest.raises(NonFiniteLossError):
        trainer.fit(model, [*good, bad, *good])
    for (name, a), b in zip(model.cpu().state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
