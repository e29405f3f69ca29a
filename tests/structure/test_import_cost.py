"""What `import leyden` loads, counted in modules and not in seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MODULES = 60
HEAVY = (
    "torchmetrics",
    "sympy",
    "scipy",
    "sklearn",
    "tensorboard",
    "torch.utils.tensorboard",
    "jsonargparse",
    "rich",
    "fsspec",
    "yaml",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
)


def added_by(code: str) -> list[str]:
    """Modules that ``code`` loads in a fresh interpreter that has torch."""
    script = f"""
import json, sys
import torch
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def heavy_among(modules: list[str]) -> list[str]:
    return [name for name in modules if any(name == heavy or name.startswith(f"{heavy}.") for heavy in HEAVY)]


@pytest.mark.parametrize(
    "code", ["import leyden", "import leyden; leyden.Trainer, leyden.LightningModule, leyden.LightningDataModule"]
)
def test_importing_leyden_adds_few_modules_and_none_that_is_heavy(code):
    added = added_by(code)
    print(f"{len(added)} modules: {' '.join(added)}")
    assert "leyden" in added
    assert heavy_among(added) == []
    assert len(added) <= MODULES, f"{len(added)} modules are more than {MODULES}: {' '.join(added)}"


def test_a_heavy_module_is_found():
    added = added_by("import yaml, fsspec.utils")
    assert {"yaml", "fsspec", "fsspec.utils"} <= set(heavy_among(added))
