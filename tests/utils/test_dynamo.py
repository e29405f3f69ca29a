"""torch's compiler, which is not imported before somebody compiles."""

from __future__ import annotations

import subprocess
import sys

from torch.optim import Adam, Optimizer

from leyden.utils.dynamo import compiler_put_off

WITH_AN_OPTIMIZER = """
import sys, torch
from torch.optim import Adam, Optimizer
from leyden.utils.dynamo import compiler_put_off
weight = torch.nn.Parameter(torch.ones(2))
before = {name: dict(vars(getattr(Optimizer, name).__wrapped__)) for name in ("add_param_group", "zero_grad")}
"""


def in_a_new_process(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", WITH_AN_OPTIMIZER + code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_making_saving_and_loading_an_optimizer_does_not_import_the_compiler():
    code = """
with compiler_put_off():
    optimizer = Adam([weight], lr=0.5)
    weight.grad = torch.ones(2)
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
after = {name: dict(vars(getattr(Optimizer, name).__wrapped__)) for name in before}
print("torch._dynamo" in sys.modules, weight.grad, optimizer.param_groups[0]["lr"], before == after)
"""
    assert in_a_new_process(code) == "False None 0.5 True"


def test_without_it_the_compiler_would_be_imported():
    """Else all this is no longer needed."""
    assert in_a_new_process('Adam([weight]); print("torch._dynamo" in sys.modules)') == "True"


def test_whoever_compiles_inside_has_torchs_own_methods():
    code = """
with compiler_put_off():
    optimizer = Adam([weight])
    torch.compile(lambda: None, backend="eager")()
    optimizer.zero_grad()
    made = vars(Optimizer.zero_grad.__wrapped__)["__dynamo_disable"]
kept = vars(Optimizer.zero_grad.__wrapped__)["__dynamo_disable"] is made
print("torch._dynamo" in sys.modules, made.__module__, kept)
"""
    assert in_a_new_process(code) == "True torch._dynamo.eval_frame True"


def test_nothing_changes_where_the_compiler_is_there_already():
    import torch._dynamo

    weight = torch.nn.Parameter(torch.ones(2))
    Adam([weight])
    before = dict(vars(Optimizer.add_param_group.__wrapped__))
    with compiler_put_off():
        assert vars(Optimizer.add_param_group.__wrapped__) == before
        Adam([weight])
    assert vars(Optimizer.add_param_group.__wrapped__) == before


def test_an_error_inside_leaves_nothing_behind():
    code = """
try:
    with compiler_put_off():
        Adam([weight], lr=-1)
except ValueError as error:
    print(error, "__dynamo_disable" in vars(Optimizer.add_param_group.__wrapped__))
"""
    assert in_a_new_process(code) == "Invalid learning rate: -1 False"
