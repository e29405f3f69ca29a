"""``leyden verify``: does a model go on from its checkpoint as if it had not stopped?"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from leyden.cli.target import find_target
from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from leyden.trainer import Trainer
from leyden.trial import Given, Record, Task, run_trial
from leyden.trial_process import SAID, VerificationError, wait_for
from leyden.utils.errors import MisconfigurationError
from leyden.utils.seed import seed_everything
from leyden.verify import verify_by

VERIFIED, NOT_VERIFIED, CANNOT_RUN = 0, 1, 2


def run_verify(target: str, data: str | None, options: Sequence[str], steps: int, seed: int, trial: str | None) -> int:
    """Verify, and print what was found.

    Args:
        target: The model, as ``train.py:Net`` or ``package.module:Net``: a LightningModule, its class, or a function
            that returns one, or one and its data.
        data: In the same form, a datamodule, its class, or a function that returns one or loaders; None where the
            model brings its data.
        options: Arguments of the Trainer, as ``name=value``.
        steps: Optimizer steps of each run.
        seed: Of every run.
        trial: Path of the task of one run, which is done here; None verifies, and starts such runs.

    Returns:
        0 when all is well, 1 with problems, 2 when it cannot be run.
    """
    if trial is not None:
        return _run_one(target, data, options, seed, trial)
    try:
        arguments = _parsed(options)
        command = [sys.executable, "-m", "leyden.cli.main", "verify", target, "--seed", str(seed)]
        command += ["--data", data] if data else []
        command += ["--trainer", *options] if arguments else []
        with tempfile.TemporaryDirectory(prefix="leyden-verify-") as folder:
            found = verify_by(lambda task: _start(command, task), target, "a new interpreter", steps, folder)
    except (ValueError, VerificationError) as error:
        print(f"leyden verify: {error}", file=sys.stderr)
        return CANNOT_RUN
    print(found)
    return VERIFIED if found else NOT_VERIFIED


def _start(command: list[str], task: Task) -> int:
    """Do ``task`` in a new interpreter, whose output goes into the task's folder."""
    path = f"{task.record}.task"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(asdict(task), file)
    with open(os.path.join(task.folder, SAID), "w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [*command, "--trial", path],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"TMPDIR": task.temporary},
        )
        try:
            wait_for(process.pid)
        finally:
            process.wait()
    return process.returncode


def _run_one(target: str, data: str | None, options: Sequence[str], seed: int, path: str) -> int:
    with open(path, encoding="utf-8") as file:
        task = Task(**json.load(file))
    try:
        seed_everything(seed, verbose=False)
        given = _given(target, data)
        trainer = Trainer(**_parsed(options))
    except (MisconfigurationError, TypeError) as error:  # each says what to do
        Record(error=[type(error).__name__, str(error), "", ""]).write(task.record)
        return CANNOT_RUN
    run_trial(trainer, given, task)
    return 0


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    """``name=value`` as arguments; a value that is no Python literal is text."""
    arguments: dict[str, Any] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or not name.isidentifier():
            raise MisconfigurationError(f"--trainer {option!r} is not of the form name=value, such as precision=bf16.")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def _given(target: str, data: str | None) -> Given:
    """Model, training loaders, validation loaders and datamodule."""
    made = _made(target, "TARGET")
    model, *rest = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, LightningModule):
        raise MisconfigurationError(
            f"TARGET {target} gives a {type(model).__name__}. Name a LightningModule, its class, or a function that "
            "returns one, or one and its data."
        )
    if data is not None:
        if rest:
            raise MisconfigurationError(f"TARGET {target} gives data, and --data {data} too. Give one of them.")
        rest = [_made(data, "--data")]
    if len(rest) == 1 and isinstance(rest[0], tuple):
        rest = list(rest[0])
    if len(rest) == 1 and isinstance(rest[0], LightningDataModule):
        return model, None, None, rest[0]
    if len(rest) > 2:
        raise MisconfigurationError(
            f"{data or target} gives {len(rest)} loaders. Return one to train, one to validate."
        )
    train, val = (*rest, None, None)[:2]
    return model, train, val, None


def _made(spec: str, argument: str) -> Any:
    """What ``spec`` names, or what comes of calling it where it is a class or a function."""
    found = find_target(spec, argument)
    if isinstance(found, LightningModule | LightningDataModule) or not callable(found):
        return found
    try:
        return found()
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # it was not even entered
            raise MisconfigurationError(
                f"{argument} {spec} cannot be called without arguments: {error}. Name a function that returns it."
            ) from error
        raise
