"""The direct step: the bits of ``optimizer.step()``, whatever the options and whatever happens between two steps."""

import copy
import random
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import leyden
from leyden.core.direct_step import DirectStep, advancing, clearing
from leyden.fabric.precision import HalfPrecision, MixedPrecision, Precision
from models import TinyModel, ready_loader

CASES, STEPS = 360, 7
SHAPES = [(), (0,), (1,), (3,), (8,), (17,), (5, 7), (33, 4), (2, 3, 1, 5), (300,), (65, 40)]
HALVES = (torch.float16, torch.bfloat16)
DTYPES = [torch.float32, torch.float32, torch.float64, *HALVES]


@pytest.fixture
def plain_steps(monkeypatch):
    """Names of torch's own steps that were taken: every one of them enters a region for torch's profiler."""
    taken = []
    region = torch.autograd.profiler.record_function

    def noting(name):
        if name.startswith("Optimizer.step"):
            taken.append(name)
        return region(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", noting)
    return taken


def bits(tensor):
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().cpu().contiguous().view(-1).view(whole) if tensor.numel() else tensor.detach().cpu()


def assert_same(one, other, where):
    """Equal trees: tensors in type, shape and every bit, the rest by ``==``."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device), where
        assert torch.equal(bits(one), bits(other)), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def random_params(rng, dtype, count):
    return [nn.Parameter((torch.randn(rng.choice(SHAPES)) * rng.choice([1, 1e-3, 30])).to(dtype)) for _ in range(count)]


def random_options(rng, kind):
    options = {"lr": rng.choice([1e-3, 0.1, 0.05678, 0.0, 1]), "maximize": rng.random() < 0.3}
    options["weight_decay"] = rng.choice([0, 0.0, 0.01, 0.1234, 1])
    if kind is SGD:
        options["momentum"] = rng.choice([0, 0.9, 0.37])
        options["nesterov"] = options["momentum"] > 0 and rng.random() < 0.5
        options["dampening"] = 0 if options["nesterov"] else rng.choice([0, 0.1])
    else:
        options["betas"] = rng.choice([(0.9, 0.999), (0.8, 0.95), (0.0, 0.5), (0.123, 0.0)])
        options["eps"] = rng.choice([1e-8, 1e-3, 0.0])
        options["amsgrad"] = rng.random() < 0.3
    return options


def random_case(seed):
    """Two equal optimizers and the random numbers that decide what happens to both."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind, dtype = rng.choice([SGD, Adam, AdamW]), rng.choice(DTYPES)
    groups = [
        {"params": random_params(rng, dtype, rng.randint(1, 5)), **random_options(rng, kind)}
        for _ in range(rng.randint(1, 3))
    ]
    if rng.random() < 0.1:  # two types in one group
        groups[0]["params"] += random_params(rng, rng.choice(DTYPES), 2)
    chosen = rng.choice([{}, {}, {}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}])
    if kind is SGD and chosen.get("fused") and any(p.dtype in HALVES for group in groups for p in group["params"]):
        chosen = {}  # torch's kernel gives other momentum buffers of these types each time it is called
    return rng, [kind(part, **chosen) for part in (groups, copy.deepcopy(groups))]


def give_gradients(rng, optimizers):
    pairs = zip(*([p for group in o.param_groups for p in group["params"]] for o in optimizers), strict=True)
    for pair in pairs:
        scale, missing = rng.choice([1, 1, 1e-4, 1e-20, 0, -0.0, float("inf")]), rng.random() < 0.15
        gradient = (torch.randn(pair[0].shape) * scale).to(pair[0].dtype)
        for parameter in pair:
            parameter.grad = None if missing else gradient.clone()


def replace_state(rng, optimizer):
    for kept in optimizer.state.values():
        for name, tensor in kept.items():
            kept[name] = tensor.clone()


def forget_state(rng, optimizer):
    parameter = optimizer.param_groups[0]["params"][0]
    optimizer.state.pop(parameter, None)


def change_options(rng, optimizer):
    group = rng.choice(optimizer.param_groups)
    group["lr"] = rng.choice([0.3, 0.01])
    group["weight_decay"] = rng.choice([0.0, 0.2])
    if "betas" in group:
        group["betas"] = (0.5, 0.6)
    else:
        group["dampening"] = 0 if group["nesterov"] else 0.3


def add_group(rng, optimizer):
    generator = torch.Generator().manual_seed(rng.randint(0, 9))
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(6, generator=generator))], "lr": 0.02})


def load_state(rng, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def load_itself(rng, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def move_data(rng, optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data = parameter.data.clone()


def write_into_state(rng, optimizer):
    for kept in optimizer.state.values():
        for name, tensor in kept.items():
            if name != "step":
                tensor.mul_(0.5)


def shrink_group(rng, optimizer):
    params = optimizer.param_groups[-1]["params"]
    if len(params) > 1:
        optimizer.state.pop(params.pop(), None)


EVENTS = [
    replace_state,
    forget_state,
    change_options,
    add_group,
    load_state,
    load_itself,
    move_data,
    write_into_state,
    shrink_group,
]


def error_of(call):
    try:
        call()
    except (AssertionError, RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def happen(rng, event, optimizers):
    """The same for both, random numbers included."""
    state = rng.getstate()
    for optimizer in optimizers:
        rng.setstate(state)
        event(rng, optimizer)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("part", range(12))
def test_random_cases_have_the_bits_of_torchs_step(part, plain_steps):
    taken = 0
    for seed in range(part, CASES, 12):
        rng, optimizers = random_case(seed)
        direct = DirectStep(optimizers[1])
        schedulers = []
        if rng.random() < 0.3:
            schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optimizers]
        for index in range(STEPS):
            give_gradients(rng, optimizers)
            refused = error_of(optimizers[0].step)
            plain_steps.clear()
            assert error_of(direct) == refused, f"seed {seed}, step {index}, {optimizers[0]}"
            if refused:  # torch's fused SGD, say, where some momentum buffers are missing
                break
            taken += not plain_steps
            where = f"seed {seed}, step {index}, {optimizers[0]}"
            for name in ("params", "grads"):
                tensors = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
                if name == "grads":
                    tensors = [[p.grad for p in params] for params in tensors]
                assert_same(*tensors, f"{where}: {name}")
            assert_same(optimizers[0].state_dict(), optimizers[1].state_dict(), where)
            for scheduler in schedulers:
                scheduler.step()
            if rng.random() < 0.35:
                happen(rng, rng.choice(EVENTS), optimizers)
    assert taken > 0.4 * STEPS * CASES / 12, f"{taken} direct steps are too few to have shown anything"


def fitted(model, **options):
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = leyden.Trainer(max_epochs=1, accelerator="cpu", devices=1, **bare | options)
    trainer.fit(model, ready_loader(6))
    return trainer


@pytest.mark.parametrize("fast", [True, False])
def test_without_fast_paths_torchs_own_step_and_clearing_are_called(fast, plain_steps, monkeypatch):
    cleared = []
    zero_grad = torch.optim.Optimizer.zero_grad
    model = TinyModel("adam")
    by_hand = copy.deepcopy(model)

    def configure():
        optimizer = Adam(model.parameters())
        optimizer.zero_grad = lambda: cleared.append(zero_grad(optimizer))
        return optimizer

    monkeypatch.setattr(model, "configure_optimizers", configure)
    fitted(model, fast_paths=fast)
    assert len(plain_steps) == (1 if fast else 6)  # the first one makes the state
    optimizer = Adam(by_hand.parameters())
    for batch in ready_loader(6):
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        optimizer.step()
    assert_same(model.state_dict(), by_hand.state_dict(), "weights")
    assert len(cleared) == 6  # an override is called in any case


class Meddles(leyden.Callback):
    """Changes what a step works on, in the middle of a run."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        optimizer, first = trainer.optimizers[0], pl_module.net[0]
        if batch_idx == 1:
            first.bias.requires_grad_(False)
            optimizer.param_groups[0]["lr"] = 0.02
        elif batch_idx == 3:
            first.bias.requires_grad_(True)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_run_that_is_meddled_with_is_the_same_either_way(kind, precision, plain_steps, monkeypatch):
    ends = []
    for fast in (True, False):
        model = TinyModel()
        options = {"momentum": 0.9} if kind is SGD else {}
        monkeypatch.setattr(
            model, "configure_optimizers", lambda model=model, o=options: kind(model.parameters(), lr=0.1, **o)
        )
        plain_steps.clear()
        trainer = fitted(model, fast_paths=fast, callbacks=[Meddles()], precision=precision, gradient_clip_val=0.5)
        assert len(plain_steps) == (1 if fast else 6)
        ends.append((model.state_dict(), trainer.optimizers[0].state_dict()))
    assert_same(*ends, "the end")


def tiny(kind=Adam, **options):
    """An optimizer of two parameters that has stepped once, a step for it, and its parameters."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))]
    for parameter in params:
        parameter.grad = torch.randn_like(parameter)
    optimizer = kind(params, **{"lr": 0.1, **options})
    step = advancing(optimizer, Precision())
    assert isinstance(step, DirectStep)
    step()
    return optimizer, step, params


def count_calls(step, plain_steps):
    """1 if ``step()`` leaves the step to torch, else 0."""
    plain_steps.clear()
    step()
    return len(plain_steps)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_the_first_step_of_adam_makes_its_state_and_all_others_are_direct(kind, plain_steps):
    _, step, _ = tiny(kind)
    assert len(plain_steps) == (kind is not SGD)
    assert count_calls(step, plain_steps) == 0


def test_hooks_are_called_wherever_they_are_registered(plain_steps):
    optimizer, step, _ = tiny()
    seen = []
    register = [
        optimizer.register_step_pre_hook,
        optimizer.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ]
    for index, add in enumerate(register):
        handle = add(lambda *_, index=index: seen.append(index))
        assert count_calls(step, plain_steps) == 1
        handle.remove()
        assert count_calls(step, plain_steps) == 0
    assert seen == [0, 1, 2, 3]


def test_a_step_that_somebody_has_put_in_place_is_called(monkeypatch):
    optimizer, step, params = tiny()
    calls = []
    optimizer.step = lambda: calls.append("of the instance")
    before = params[0].clone()
    step()
    del optimizer.step
    monkeypatch.setattr(Adam, "step", lambda self: calls.append("of the class"))
    step()
    assert calls == ["of the instance", "of the class"]
    assert torch.equal(params[0], before)
    assert not isinstance(advancing(optimizer, Precision()), DirectStep)


@pytest.mark.parametrize("made", ["before", "after"])
def test_a_scheduler_of_torch_learns_that_the_optimizer_has_stepped(made, plain_steps):
    optimizer, step, _ = tiny()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    if made == "before":
        step = advancing(optimizer, Precision())
    assert count_calls(step, plain_steps) == 0
    scheduler.step()  # it would warn, and warnings are errors here
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_torchs_profiler_still_sees_the_step():
    _, step, _ = tiny()
    with torch.profiler.profile() as profile:
        step()
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


class Other(Adam):
    pass


class StepsItsOwnWay(Precision):
    def step(self, optimizer, closure=None):
        return super().step(optimizer, closure)


@pytest.mark.parametrize(
    ("optimizer", "precision", "direct"),
    [
        (SGD, Precision(), True),
        (Adam, HalfPrecision("bf16-true"), True),
        (AdamW, MixedPrecision("bf16-mixed", "cpu"), True),
        (Adam, MixedPrecision("16-mixed", "cpu"), False),
        (Adam, StepsItsOwnWay(), False),
        (Other, Precision(), False),
        (torch.optim.RMSprop, Precision(), False),
        (torch.optim.LBFGS, Precision(), False),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", str(value))),
)
def test_only_torchs_own_under_a_precision_without_a_scaler_step_directly(optimizer, precision, direct):
    step = advancing(optimizer([nn.Parameter(torch.ones(2))]), precision)
    assert isinstance(step, DirectStep) == direct


UNUSUAL = {
    "lr": torch.tensor(0.1),
    "weight_decay": torch.tensor(0.1),
    "differentiable": True,
    "capturable": True,
    "foreach and fused": True,
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (SGD, AdamW) for name in UNUSUAL if (kind, name) != (SGD, "capturable")]
)
def test_unusual_options_are_left_to_torch_for_as_long_as_they_hold(kind, name, plain_steps):
    optimizer, step, _ = tiny(kind)
    group = optimizer.param_groups[0]
    names = ("foreach", "fused") if name == "foreach and fused" else (name,)
    before = {name: group[name] for name in names}
    group.update(dict.fromkeys(names, UNUSUAL[name]))
    error_of(step)  # torch may refuse it
    assert len(plain_steps) == 1 + (kind is not SGD)
    group.update(before)
    assert count_calls(step, plain_steps) == 0


def complex_weights(params):
    return [nn.Parameter(torch.randn(3, dtype=torch.complex64)) for _ in params]


def the_same_twice(params):
    return [params[0], params[0]]


def views_of_the_same(params):
    whole = torch.randn(6)
    return [nn.Parameter(whole[:4]), nn.Parameter(whole[2:])]


def half_numbers(params):
    return [nn.Parameter(torch.ones((), dtype=torch.bfloat16)) for _ in params]


def two_widths(params):
    return [params[0], nn.Parameter(torch.randn(3, dtype=torch.float64))]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(
    "unusual", [complex_weights, the_same_twice, views_of_the_same, half_numbers, two_widths], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_unusual_weights_are_left_to_torch(kind, unusual, plain_steps):
    params = unusual([nn.Parameter(torch.randn(3)) for _ in range(2)])
    optimizer = kind(params, lr=0.1)
    step = DirectStep(optimizer)
    for _ in range(3):
        for parameter in params:
            parameter.grad = torch.ones_like(parameter)
        assert count_calls(step, plain_steps) == 1


def test_views_of_one_buffer_that_lie_side_by_side_step_directly(plain_steps):
    whole = torch.randn(7)
    params = [nn.Parameter(whole[:4]), nn.Parameter(whole[4:])]
    step = DirectStep(SGD(params, lr=0.1))
    for parameter in params:
        parameter.grad = torch.ones_like(parameter)
    assert count_calls(step, plain_steps) == 0


def test_sparse_gradients_are_left_to_torch_and_dense_ones_are_not(plain_steps):
    table = nn.Embedding(5, 2, sparse=True)
    step = DirectStep(SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1, 3])).sum().backward()
    assert count_calls(step, plain_steps) == 1
    table.weight.grad = torch.ones(5, 2)
    assert count_calls(step, plain_steps) == 0


def test_one_unusual_group_leaves_all_groups_to_torch(plain_steps):
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:], "lr": torch.tensor(0.5)}], lr=0.25)
    for parameter in params:
        parameter.grad = torch.ones(2)
    assert count_calls(DirectStep(optimizer), plain_steps) == 1
    assert [parameter[0].item() for parameter in params] == [0.75, 0.5]  # neither of them twice


def test_the_step_keeps_no_gradient_alive():
    _, step, params = tiny()
    step()
    references = [weakref.ref(parameter.grad) for parameter in params]
    for parameter in params:
        parameter.grad = None
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_step_leaves_the_gradient_mode_as_it_was(enabled):
    optimizer, step, _ = tiny()
    with torch.set_grad_enabled(enabled):
        step()
        assert torch.is_grad_enabled() == enabled
    assert not any(tensor.requires_grad for kept in optimizer.state.values() for tensor in kept.values())


def test_gradients_are_cleared_as_by_zero_grad(monkeypatch):
    optimizer, _, params = tiny()
    params[1].grad = None
    clear = clearing(optimizer)
    clear()
    assert [parameter.grad for parameter in params] == [None, None]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    added = optimizer.param_groups[1]["params"][0]
    added.grad = torch.ones(2)
    clear()
    assert added.grad is None
    calls = []
    optimizer.zero_grad = lambda: calls.append("of the instance")
    clear()
    del optimizer.zero_grad
    monkeypatch.setattr(Adam, "zero_grad", lambda self: calls.append("of the class"))
    clear()
    clearing(optimizer)()
    assert calls == ["of the instance", "of the class", "of the class"]


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", [{}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_on_a_gpu_the_bits_are_those_of_torchs_step(kind, chosen, plain_steps):
    torch.manual_seed(0)
    params = [torch.randn(shape, device="cuda") for shape in ((64, 32), (64,), (), (5, 7))]
    options = {"lr": 0.1, "weight_decay": 0.1, **({"momentum": 0.9} if kind is SGD else {"amsgrad": True}), **chosen}
    optimizers = [kind([nn.Parameter(p.clone()) for p in params], **options) for _ in range(2)]
    step = DirectStep(optimizers[1])
    for index in range(5):
        for pair in zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True):
            gradient = torch.randn_like(pair[0])
            for parameter in pair:
                parameter.grad = gradient.clone()
        optimizers[0].step()
        assert count_calls(step, plain_steps) == (index == 0 or chosen.get("foreach") is False)
        assert_same(*(o.param_groups[0]["params"] for o in optimizers), f"step {index}")
        assert_same(optimizers[0].state_dict(), optimizers[1].state_dict(), f"step {index}")


WITHOUT_THE_COMPILER = """
import sys, torch
sys.path.insert(0, {tests!r})
from models import TinyModel, tiny_loader
from recording import bare

class Model(TinyModel):
    def configure_optimizers(self):
        optimizer = {optimizer}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

def trained(**options):
    torch.manual_seed(0)
    model = Model()
    trainer = bare(max_epochs=2, **options)
    trainer.fit(model, list(tiny_loader(4)))
    trainer.save_checkpoint({file!r})
    return [*model.parameters(), *(t for s in trainer.optimizers[0].state.values() for t in s.values())]

quick = trained()
imported = "torch._dynamo" in sys.modules
usual = trained(fast_paths=False)
print(imported, "torch._dynamo" in sys.modules, len(quick) == len(usual) and all(map(torch.equal, quick, usual)))
"""


@pytest.mark.parametrize(
    "optimizer",
    [
        "torch.optim.Adam(self.parameters())",
        "torch.optim.AdamW(self.parameters(), amsgrad=True, weight_decay=0.1)",
        "torch.optim.SGD(self.parameters(), 0.1)",
        "torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, dampening=0.5)",
    ],
)
def test_a_whole_fit_does_without_torchs_compiler(optimizer, tmp_path):
    tests = str(Path(__file__).parents[1])
    code = WITHOUT_THE_COMPILER.format(tests=tests, optimizer=optimizer, file=str(tmp_path / "last.ckpt"))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "False True True", ran.stderr
