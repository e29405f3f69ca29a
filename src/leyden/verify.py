"""Trainer.verify: does training go on from a checkpoint as if it had never stopped?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.trial import Record, Task
from leyden.trial_process import SAID, copies
from leyden.trial_process import VerificationError as VerificationError
from leyden.utils.fingerprint import bits

if TYPE_CHECKING:
    from leyden.core.datamodule import LightningDataModule
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

# Runs the trial of a task in a process of its own; returns its exit status.
Starter = Callable[[Task], int]

_SHOWN = 8
_BLAMED = 8
_BITS = "bit for bit"


@dataclass(frozen=True)
class Difference:
    """A value that is another one after a resume.

    Attributes:
        kind: ``"weight"``, ``"buffer"``, ``"optimizer"``, ``"scheduler"``, ``"callback"``, ``"datamodule"``,
            ``"metric"``, ``"position"`` or ``"random generator"``.
        name: Its name, such as ``"net.0.weight"`` or ``"Adam: exp_avg of net.0.weight"``.
        most: The largest difference of two numbers in it; None where there is none to tell.
        text: Both values in a few words.
    """

    kind: str
    name: str
    most: float | None
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.text}"


@dataclass(frozen=True)
class Problem:
    """Something that keeps a resumed run from being the uninterrupted one.

    Attributes:
        kind: ``"determinism"``: two runs from the same start differ. ``"saving"``: no checkpoint can be saved.
            ``"weights_only"``: the checkpoint cannot be read under ``weights_only=True``. ``"resume"``: the resumed run
            fails or differs. ``"attribute"``: it differs because the checkpoint lacks an attribute.
        what: What it is about: a tensor, a place in the checkpoint, an attribute.
        text: All of it, and what to do.
    """

    kind: str
    what: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(repr=False)
class Verification:
    """What ``Trainer.verify`` found; true when there is no problem, and ``str`` of it is for people.

    Attributes:
        problems: What keeps a resumed run from being the uninterrupted one; empty when nothing does.
        notes: What is worth knowing and did no harm here.
        differences: Everything that differs after a resume, and not in any two runs.
        compared: How many values of each kind were compared.
        batches: Training batches of each run.
        saved_at: Epoch, and batches of it, that were done when the checkpoint was saved.
        lines: The report's first lines, a title and a text each.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    saved_at: tuple[int, int] = (0, 0)
    title: str = ""
    lines: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """There is no problem."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [self.title, "", *(f"{name:<14} {text}" for name, text in self.lines)]
        for heading, entries in (("Problems", [*map(str, self.problems)]), ("Notes", self.notes)):
            if entries:
                lines += ["", heading, *(f"  {entry}" for entry in entries[:_SHOWN])]
            if len(entries) > _SHOWN:
                lines.append(f"  and {len(entries) - _SHOWN} more")
        return "\n".join([*lines, "", "Verified." if self.ok else "NOT verified."])

    def __repr__(self) -> str:
        return f"Verification(ok={self.ok}, problems={len(self.problems)}, notes={len(self.notes)})"


def verify(
    trainer: Trainer,
    model: LightningModule,
    train: Any,
    val: Any,
    datamodule: LightningDataModule | None,
    steps: int,
) -> Verification:
    """Verify in processes that are copies of this one; see Trainer.verify."""
    with tempfile.TemporaryDirectory(prefix="leyden-verify-") as folder:
        start, how = copies(trainer, (model, train, val, datamodule), folder)
        return verify_by(start, type(model).__name__, how, steps, folder)


def verify_by(start: Starter, name: str, how: str, steps: int, folder: str) -> Verification:
    """Verify with the processes that ``start`` starts.

    Args:
        start: Starts a trial; every one of them from the same weights, data and seed.
        name: The model's, for people.
        how: What kind of process that is, for people.
        steps: Optimizer steps of a trial; at least 2.
        folder: For its files.

    Raises:
        VerificationError: Training itself fails.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps={steps!r} is not a whole number from 2 up.")
    return _Trials(start, name, how, steps, Path(folder)).verify()


class _Trials:
    """The trials of one verification, in the order that they are needed."""

    def __init__(self, start: Starter, name: str, how: str, steps: int, folder: Path) -> None:
        self.start, self.steps, self.folder = start, steps, folder
        self.work, self.left = folder / "work", folder / "left"
        self.checkpoint, self.values = str(folder / "saved.ckpt"), str(folder / "values.pickle")
        self.found = Verification(title=f"Verification of {name}, each run in {how}")
        self.weights_only: bool | None = None

    def verify(self) -> Verification:
        found = self.found
        whole = self._run()
        if whole.error and whole.error[3] == "True":  # what is saved is looked at before training
            self._problem("saving", "checkpoint", f"No checkpoint can be saved: {whole.error[1]}")
            return found
        if whole.error or not whole.batches:
            raise VerificationError(_failure(whole.error))
        found.batches = max(whole.batches) + 1
        found.compared = {kind: len(values) for kind, values in whole.final.items() if values}
        saved = self._run(save=self.checkpoint, values=self.values)
        if saved.error or not os.path.exists(self.checkpoint):
            why = f"{saved.error[0]}: {saved.error[1]}" if saved.error else "training was over before."
            self._problem("saving", "checkpoint", f"No checkpoint can be saved while training: {why}")
            return found
        shutil.copytree(self.work, self.left)
        epoch, batch, done = saved.position
        found.saved_at = (epoch, batch)
        rest = found.batches - done
        at = f"after {_count(batch, 'batch')} of epoch {epoch}"
        found.lines.append(
            ("trained", f"{_count(found.batches, 'batch')}; a checkpoint {at}; from it the other {rest}")
        )
        if whole.epoch_length == 1:
            found.notes.append("An epoch has one batch, so that nothing was resumed in the middle of one.")
        self._look_at(saved)
        self._compare(whole, saved, done)
        return found

    def _run(self, **options: Any) -> Record:
        """One trial; one that resumes finds the folder as the saving one left it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if "resume" in options:
            shutil.copytree(self.left, self.work)
        else:
            self.work.mkdir()
        record = self.folder / "record.pt"
        record.unlink(missing_ok=True)
        task = Task(str(self.work), str(record), self.steps, **options)
        shutil.rmtree(task.temporary, ignore_errors=True)
        os.mkdir(task.temporary)
        status = self.start(task)
        if record.exists():
            return Record.read(str(record))
        said = self.work / SAID
        last = said.read_text(errors="replace")[-2000:] if said.exists() else ""
        raise VerificationError(f"The process of a trial ended with status {status} before its time. {last}".rstrip())

    def _resume(self, **options: Any) -> Record:
        return self._run(resume=self.checkpoint, weights_only=self.weights_only, **options)

    def _problem(self, kind: str, what: str, text: str) -> None:
        self.found.problems.append(Problem(kind, what, text))

    def _look_at(self, saved: Record) -> None:
        """What the saving trial found in its checkpoint."""
        if saved.refused:
            self.weights_only = False
            for place in saved.unsafe or [saved.refused]:
                text = (
                    f"The checkpoint cannot be loaded under weights_only=True: {place}. Keep plain values and tensors."
                )
                self._problem("weights_only", place, text)
        self.found.lines.append(
            ("checkpoint", f"{'cannot be loaded' if saved.refused else 'loads'} under weights_only")
        )
        if saved.left_out:
            self.found.notes.append(
                f"The checkpoint leaves out the hyper-parameters {', '.join(saved.left_out)}, which are not plain "
                "values; load_from_checkpoint will need them."
            )

    # Uninterrupted and resumed.

    def _compare(self, whole: Record, saved: Record, done: int) -> None:
        found = self.found
        parted = _parting(whole, saved, 0, done)
        resumed = self._resume()
        if resumed.error:
            self._problem("resume", "", f"Resuming from the checkpoint fails: {resumed.error[0]}: {resumed.error[1]}")
            found.lines.append(("resumed", "fails"))
        missing = _not_restored(whole, resumed, done)
        differences = [] if resumed.error else list(_differences(whole, resumed))
        astray = None if resumed.error else _parting(whole, resumed, done, found.batches)
        again = whole
        if parted or differences or astray:
            again = self._run()
            parted = parted or _parting(whole, again, 0, found.batches)
        unsteady = {(one.kind, one.name) for one in _differences(whole, again)}
        missing = {name: text for name, text in missing.items() if _same_attribute(whole, again, done, name)}
        if parted:
            self._not_deterministic(whole, *parted)
            self._note(missing, "")
            return
        found.lines.append(("deterministic", f"the same batches, losses, gradients and weights twice, {_BITS}"))
        for kind, name in sorted(unsteady):
            found.notes.append(f"{kind} {name} differs in any two runs, as times do, so that it is not compared.")
        found.differences = [one for one in differences if (one.kind, one.name) not in unsteady]
        if resumed.error:
            return
        if not found.differences and not astray:
            listed = _listed(found.compared)
            found.lines.append(("resumed", f"all is the same as without a stop, {_BITS}: {listed}"))
            self._note(missing)
        else:
            listed = _listed(Counter(one.kind for one in found.differences)) or "the way there"
            found.lines.append(("resumed", f"differs from the run without a stop: {listed}"))
            self._blame(whole, missing, unsteady, astray, done)

    def _not_deterministic(self, whole: Record, batch: int, what: str) -> None:
        self.found.lines.append(("deterministic", "no; whether resuming is exact cannot be told"))
        self._problem(
            "determinism",
            what,
            f"Training is not deterministic: two runs from the same weights, data and seed part at "
            f"{_where(whole, batch)}: {what} differs. {_cause(what)}",
        )

    def _note(self, missing: dict[str, str], then: str = "Here nothing else came of it.") -> None:
        self.found.notes += [f"{text} {then}".rstrip() for text in missing.values()]

    def _blame(
        self,
        whole: Record,
        missing: dict[str, str],
        unsteady: set[tuple[str, str]],
        astray: tuple[int, str] | None,
        done: int,
    ) -> None:
        """Find the attributes whose absence makes the difference: put them back, and see."""
        causes = self._causes(whole, list(missing)[:_BLAMED], unsteady, done)
        for name, text in missing.items():
            if name in causes:
                self._problem("attribute", name, f"{text} The resumed run differs because of it.")
        others = {name: text for name, text in missing.items() if name not in causes}
        if causes:
            self._note(others)
            return
        self._note(others, "That is not all, for with it put back the resumed run differs all the same.")
        if astray:
            batch, what = astray
            text = f"The resumed run goes another way from {_where(whole, batch)} on: {what} differs. {_after(what)}"
            self._problem("resume", what, text)
        for one in self.found.differences:
            self._problem("resume", f"{one.kind} {one.name}", f"After the resume {one}")

    def _causes(self, whole: Record, names: list[str], unsteady: set[tuple[str, str]], done: int) -> list[str]:
        """Those of the attributes without which the resumed run differs, if with all of them it does not."""

        def is_exact(put_back: list[str]) -> bool:
            record = self._resume(put_back=put_back, values=self.values)
            if record.error or _parting(whole, record, done, self.found.batches):
                return False
            return all((one.kind, one.name) in unsteady for one in _differences(whole, record))

        if not names or not is_exact(names):
            return []
        if len(names) == 1:
            return names
        return [name for name in names if not is_exact([other for other in names if other != name])] or names


def _differences(one: Record, other: Record) -> Iterator[Difference]:
    """What the two trials left that is not the same."""
    for kind, values in one.final.items():
        others = other.final.get(kind, {})
        for name in dict.fromkeys((*values, *others)):
            if name not in values or name not in others:
                yield Difference(kind, name, None, "only there " + ("without a stop" if name in values else "resumed"))
            elif not _same(values[name], others[name]):
                yield _difference(kind, name, values[name], others[name])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _difference(kind: str, name: str, one: Any, other: Any) -> Difference:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and one.numel() > 1:
        distance = (one.to(torch.complex128) - other.to(torch.complex128)).abs()
        furthest, number = float(distance.max()), int((distance != 0).sum())
        return Difference(kind, name, furthest, f"differs by up to {furthest:.3g} in {number} of {one.numel()} numbers")
    one, other = (value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in (one, other))
    both = isinstance(one, int | float) and isinstance(other, int | float)
    most = float(abs(one - other)) if both else None
    if isinstance(one, str) and len(one) == len(str(other)) == 32 and " " not in one:
        return Difference(kind, name, None, "differs")
    return Difference(kind, name, most, f"is {_short(one)} without a stop and {_short(other)} resumed")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _parting(one: Record, other: Record, first: int, end: int) -> tuple[int, str] | None:
    """The first batch from ``first`` to before ``end`` in which the two differ, and the first thing that does."""
    for batch in range(first, end):
        mine, others = one.batches.get(batch), other.batches.get(batch)
        if mine is None and others is None:
            continue
        if mine is None or others is None:
            return batch, "the number of batches"
        for name, value in mine.items():
            if others.get(name) != value:
                return batch, name
    return None


def _not_restored(whole: Record, resumed: Record, done: int) -> dict[str, str]:
    """The attributes that training had changed at the checkpoint, and that are not so again after the resume."""
    first, then, now = whole.attributes.get(0, {}), whole.attributes.get(done, {}), resumed.attributes.get(done)
    texts: dict[str, str] = {}
    if now is None:
        return texts
    for name, (value, shown, remedy) in then.items():
        before = first.get(name, ("", "not there", ""))
        if value not in (before[0], now.get(name, ("",))[0]):
            change = "changed" if before[1] == shown else f"went from {before[1]} to {shown}"
            texts[name] = f"{name} {change} in training and is not restored from the checkpoint; {remedy}."
    return texts


def _same_attribute(one: Record, other: Record, done: int, name: str) -> bool:
    return one.attributes.get(done, {}).get(name) == other.attributes.get(done, {}).get(name)


def _where(whole: Record, batch: int) -> str:
    length = max(1, whole.epoch_length)
    return f"batch {batch % length} of epoch {batch // length}"


def _failure(error: list[str]) -> str:
    """What to say of a run that fails without any checkpoint."""
    if not error:
        return "There is nothing to verify: no batch was trained on."
    name, message, traceback, _ = error
    if not traceback:  # it did not come to training
        return message
    return f"There is nothing to verify, as training itself fails. {name}: {message}\n\n{traceback}".rstrip()


def _cause(what: str) -> str:
    if what == "the batch":
        return "The data comes in another order, or draws on something that no seed sets."
    if what == "the loss":
        return "The step draws on something that no seed sets, such as the time, os.urandom or the order of a set."
    return "Try Trainer(deterministic=True)."


def _after(what: str) -> str:
    if what == "the batch":
        return (
            "Other data follows a resume than follows without one. Where train_dataloader() draws a dataset at random, "
            "it draws another one then: draw it in setup(), or from a torch.Generator with a seed."
        )
    if what == "the loss":
        return "The batch is the same, so the step uses something else that is not restored."
    return "The losses up to there are the same, so something in the backward pass or the optimizer is not restored."


def _listed(counts: Mapping[str, int]) -> str:
    """How many of each kind.

    >>> _listed({"weight": 4, "optimizer": 2})
    '4 weights, 2 optimizer values'
    """
    plain = ("weight", "buffer", "metric", "random generator")
    return ", ".join(_count(number, kind if kind in plain else f"{kind} value") for kind, number in counts.items())


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
