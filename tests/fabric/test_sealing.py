"""The seal: a SHA-256 of all that was written, in a file that stays an ordinary one of torch."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
import zlib

import pytest
import torch

from leyden.fabric.checkpoint_io import CheckpointIO, verify_checkpoint
from leyden.fabric.sealing import SealedFile, is_sealed, sha256_of, verify
from leyden.utils.errors import CheckpointError

checkpoints = CheckpointIO()


def checkpoint(size=30_000):
    return {"epoch": 3, "state_dict": {"weight": torch.arange(float(size))}}


def sealed(content=None):
    file = io.BytesIO()
    wrapper = SealedFile(file)
    torch.save(content or checkpoint(), wrapper)
    wrapper.seal()
    return file.getvalue()


def test_the_seal_is_a_comment_with_the_sum_of_every_byte_that_is_in_no_record():
    whole = sealed()
    assert re.fullmatch(rb"leyden:1:[0-9a-f]{64}", whole[-73:])
    outside = whole[:-73]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.comment == whole[-73:]
        for entry in sorted(archive.infolist(), key=lambda entry: -entry.header_offset):
            data = archive.read(entry)
            assert zlib.crc32(data) == entry.CRC
            first = outside.index(data, entry.header_offset)
            outside = outside[:first] + outside[first + len(data) :]
    assert whole[-64:].decode() == hashlib.sha256(outside).hexdigest()


def test_without_the_checksums_of_torch_the_seal_covers_the_records_too(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        whole = sealed()
    finally:
        torch.serialization.set_crc32_options(True)
    assert whole[-64:].decode() == hashlib.sha256(whole[:-73]).hexdigest()
    middle, path = len(whole) // 2, tmp_path / "a.ckpt"
    path.write_bytes(whole)
    verify_checkpoint(path)
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match="its SHA-256"):
        verify_checkpoint(path)


@pytest.mark.parametrize("bytes_", [0, 1, 2**21 - 3000, 2**21, 2**24 + 7])  # within the hash's buffers, and beyond
def test_files_of_all_sizes_are_sealed_and_hold_what_torch_writes(bytes_):
    content = {"x": torch.arange(bytes_, dtype=torch.int64).to(torch.uint8), "y": torch.zeros(3)}
    plain = io.BytesIO()
    torch.save(content, plain)
    whole = sealed(content)
    assert whole[:-75] == plain.getvalue()[:-2]  # all but the length of the comment, and the comment
    assert verify(io.BytesIO(whole), "it")


@pytest.mark.parametrize("how", [{"weights_only": True}, {"weights_only": False}, {"mmap": True}])
def test_plain_torch_reads_it(tmp_path, how):
    checkpoints.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    with open(tmp_path / "a.ckpt", "rb") as file:
        assert is_sealed(file) and file.tell() == 0
    loaded = torch.load(tmp_path / "a.ckpt", **how)
    assert torch.equal(loaded["state_dict"]["weight"], checkpoint()["state_dict"]["weight"])


def test_bytes_in_any_pieces_make_the_same_file():
    plain = io.BytesIO()
    torch.save(checkpoint(), plain)
    whole = sealed()
    for size in (1, 21, 22, 23, 5000):
        file = io.BytesIO()
        wrapper = SealedFile(file)
        for start in range(0, len(plain.getvalue()), size):
            piece = plain.getvalue()[start : start + size]
            assert wrapper.write(piece) == len(piece)
        wrapper.seal()
        assert file.getvalue() == whole


def test_a_file_that_is_no_zip_is_passed_on_as_it_is():
    file = io.BytesIO()
    wrapper = SealedFile(file)
    wrapper.write(b"short")
    wrapper.seal()
    assert file.getvalue() == b"short" and not verify(file, "it")


def test_why_a_write_failed_is_known():
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 2**23:
                raise OSError(28, "No space left on device")
            return super().write(data)

    wrapper = SealedFile(Full())
    with pytest.raises(RuntimeError):
        torch.save({"x": [torch.zeros(2**20) for _ in range(8)]}, wrapper)
    assert wrapper.error is not None and wrapper.error.errno == 28


def test_a_sum_is_of_what_is_left_of_the_file_or_of_a_part():
    file = io.BytesIO(b"abcdef")
    file.seek(1)
    assert sha256_of(file, 2) == hashlib.sha256(b"bc").hexdigest()
    assert sha256_of(file) == hashlib.sha256(b"def").hexdigest()


def test_a_checkpoint_may_stand_at_the_end_of_a_larger_file():
    whole = sealed()
    file = io.BytesIO(b"before" + whole)
    file.seek(6)
    assert verify(file, "it") and file.tell() == 6
    file = io.BytesIO(b"before" + whole[:500] + b"!" + whole[501:])
    file.seek(6)
    with pytest.raises(CheckpointError, match="it is damaged: its"):
        verify(file, "it")


# A seal that is lost.


def test_a_seal_cut_short_or_off_is_noticed(tmp_path):
    whole, path = sealed(), tmp_path / "a.ckpt"
    for cut in range(1, 96):
        path.write_bytes(whole[:-cut])
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checkpoint(path)


def test_without_the_seal_the_checksums_that_torch_stores_still_hold(tmp_path):
    whole, path = sealed(), tmp_path / "a.ckpt"
    stripped = whole[:-75] + b"\0\0"  # as a tool that writes zip files anew, without the comment, would leave it
    path.write_bytes(stripped)
    verify_checkpoint(path)
    middle = len(stripped) // 2
    path.write_bytes(stripped[:middle] + bytes([stripped[middle] ^ 1]) + stripped[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"its record .*data/0 is not what was written"):
        verify_checkpoint(path)


def test_bytes_behind_the_end_are_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    plain = io.BytesIO()
    torch.save(checkpoint(), plain)
    for whole in (sealed(), plain.getvalue()):
        path.write_bytes(whole + b"x")
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checkpoint(path)


# verify_checkpoint.


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_verifying_unpickles_nothing(tmp_path):
    checkpoints.save_checkpoint({"evil": Evil(str(tmp_path / "pwned"))}, tmp_path / "a.ckpt")
    verify_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_verifying_says_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save(checkpoint(), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("text.ckpt", "old.ckpt"):
        with pytest.raises(CheckpointError, match=rf"{name} is damaged, or not a checkpoint"):
            verify_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder"):
        verify_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Beside it: .*old\.ckpt"):
        verify_checkpoint(tmp_path / "new.ckpt")


MEMORY = """
import resource, sys, torch
from leyden.fabric.checkpoint_io import CheckpointIO, verify_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

small = {"x": torch.zeros(4)}
checkpoints, path = CheckpointIO(), sys.argv[1]
checkpoints.save_checkpoint(small, path)  # everything is imported
verify_checkpoint(path)
state = {"x": [torch.ones(12_500_000) for _ in range(4)]}  # 200 MB
before = peak()
checkpoints.save_checkpoint(state, path)
saved = peak()
verify_checkpoint(path)
print((saved - before) // 1024, (peak() - saved) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="systems other than Linux count peak memory otherwise")
def test_neither_saving_nor_verifying_holds_the_state_twice(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.ckpt")], capture_output=True, text=True, check=True
    )
    saving, verifying = map(int, done.stdout.split())  # MiB
    assert saving <= 40
    assert verifying <= 40
