"""Damaged checkpoint files: every truncation, flipped bit and lost block is an error, or changes nothing."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from leyden.fabric.checkpoint_io import CheckpointIO, verify_checkpoint
from leyden.fabric.sealing import SealedFile
from leyden.utils.errors import CheckpointError

BLOCK = 4096
checkpoints = CheckpointIO()


def checkpoint():
    """What a Trainer saves, of about 500 kB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 150), nn.BatchNorm1d(150), nn.Linear(150, 75))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 200)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 1234,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 0.1, "name": "x" * 50},
    }


def written(sealed):
    file = io.BytesIO()
    if not sealed:
        torch.save(checkpoint(), file)
    else:
        wrapper = SealedFile(file)
        torch.save(checkpoint(), wrapper)
        wrapper.seal()
    return file.getvalue()


WHOLE = {True: written(sealed=True), False: written(sealed=False)}


def flipped(whole, byte, bit):
    damaged = bytearray(whole)
    damaged[byte] ^= 1 << bit
    return bytes(damaged)


def truncations(whole: bytes, count: int) -> Iterator[bytes]:
    """Cut anywhere, and within the last hundred bytes, where the directory's end and the seal are."""
    draw = random.Random(1)
    for cut in range(count):
        yield whole[: draw.randrange(len(whole)) if cut % 2 else len(whole) - draw.randrange(1, 101)]


def flips(whole: bytes, count: int) -> Iterator[bytes]:
    draw = random.Random(2)
    for _ in range(count):
        yield flipped(whole, draw.randrange(len(whole)), draw.randrange(8))


def flips_in_metadata(whole: bytes, count: int) -> Iterator[bytes]:
    """In what says where the tensors are and what they mean: headers, the pickle, the directory, the comment."""
    places = []
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for record in archive.infolist():
            places += range(record.header_offset, record.header_offset + 30 + len(record.filename))
            if record.filename.endswith("data.pkl"):
                data = whole.index(b"\x80\x02", record.header_offset)
                places += range(data, data + record.file_size)
        places += range(archive.start_dir, len(whole))
    end = len(whole) - len(archive.comment)
    draw = random.Random(3)
    for trial in range(count):
        where = range(end - 22, len(whole)) if trial % 3 == 0 else places  # a third in the end record and the seal
        yield flipped(whole, draw.choice(where), draw.randrange(8))


def lost_blocks(whole: bytes, count: int) -> Iterator[bytes]:
    """A block of a disk that reads as zeros; always one that held something else."""
    draw = random.Random(4)
    starts = [start for start in range(0, len(whole), BLOCK) if any(whole[start : start + BLOCK])]
    for _ in range(count):
        start = draw.choice(starts)
        lost = len(whole[start : start + BLOCK])
        yield whole[:start] + bytes(lost) + whole[start + lost :]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def outcomes(trials, path):
    """How many trials were an error, changed nothing, or went unnoticed."""
    expected, errors, harmless, silent = checkpoint(), 0, 0, 0
    for damaged in trials:
        path.write_bytes(damaged)
        try:
            loaded = checkpoints.load_checkpoint(path)
        except CheckpointError:
            errors += 1
            continue
        harmless, silent = (harmless + 1, silent) if equal(loaded, expected) else (harmless, silent + 1)
    return errors, harmless, silent


KINDS = {truncations: 100, flips: 1000, flips_in_metadata: 500, lost_blocks: 100}


def test_equal_tells_checkpoints_apart():
    other = checkpoint()
    assert equal(checkpoint(), other)
    other["state_dict"]["0.weight"][7, 7] += 1e-6
    assert not equal(checkpoint(), other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_a_sealed_file_is_an_error(tmp_path, kind):
    assert outcomes(kind(WHOLE[True], KINDS[kind]), tmp_path / "a.ckpt") == (KINDS[kind], 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_a_file_of_torch_is_an_error_or_changes_nothing(tmp_path, kind):
    count = KINDS[kind] // 2
    errors, harmless, silent = outcomes(kind(WHOLE[False], count), tmp_path / "a.ckpt")
    assert silent == 0
    assert errors + harmless == count
    assert errors >= count / 2  # dates, file modes and the like mean nothing to torch


def test_a_damaged_file_is_never_unpickled(tmp_path):
    """Flips in the pickle itself, of a file that is read as any object may be."""
    whole, path = WHOLE[True], tmp_path / "a.ckpt"
    start = whole.index(b"\x80\x02")
    draw = random.Random(5)
    for _ in range(50):
        path.write_bytes(flipped(whole, start + draw.randrange(1000), draw.randrange(8)))
        with pytest.raises(CheckpointError, match="is damaged: its"):
            checkpoints.load_checkpoint(path, weights_only=False)


def test_the_error_names_the_newest_good_checkpoint_beside_it(tmp_path):
    for age, name in enumerate(("a", "b", "c", "d")):
        checkpoints.save_checkpoint({"epoch": age}, tmp_path / f"{name}.ckpt")
    whole = WHOLE[True]
    for name in ("c", "d"):
        (tmp_path / f"{name}.ckpt").write_bytes(flipped(whole, 5000, 3))
    with pytest.raises(CheckpointError, match=r"d\.ckpt is damaged.* good one beside it is .*b\.ckpt\.$"):
        checkpoints.load_checkpoint(tmp_path / "d.ckpt")
    with pytest.raises(CheckpointError, match=r"(sealed with|was written)\.$"):
        verify_checkpoint(tmp_path / "d.ckpt")
    for name in ("a", "b"):
        (tmp_path / f"{name}.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"(sealed with|was written)\.$"):
        checkpoints.load_checkpoint(tmp_path / "d.ckpt")
