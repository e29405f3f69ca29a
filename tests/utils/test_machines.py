"""Processors and file systems."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from leyden.fabric.strategies.strategy import Strategy
from leyden.utils.machines import is_shared_filesystem, suggested_max_num_workers


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which processors are ours")
@pytest.mark.parametrize(
    ("processors", "processes", "workers"), [(64, 1, 63), (64, 2, 31), (64, 8, 7), (64, 64, 1), (2, 1, 1), (1, 3, 1)]
)
def test_workers_share_the_processors_less_one_a_process(monkeypatch, processors, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    assert suggested_max_num_workers(processes) == workers


def test_no_process_is_refused():
    with pytest.raises(ValueError, match="local_world_size=0 is less than 1"):
        suggested_max_num_workers(0)


class Threads:
    """Two threads that talk as two processes do."""

    def __init__(self, rank: int, shared: dict[str, Any]) -> None:
        self.rank, self.shared = rank, shared
        self.world_size, self.is_global_zero = 2, rank == 0

    def broadcast(self, obj: Any) -> Any:
        if self.is_global_zero:
            self.shared["sent"] = obj
        self.shared["barrier"].wait()
        return self.shared["sent"]

    def any(self, flag: bool) -> bool:
        self.shared[self.rank] = flag
        self.shared["barrier"].wait()
        return self.shared[0] or self.shared[1]


def answers(*paths: Any) -> list[bool]:
    """What two processes are told, each looking at its own path as ``path``."""
    shared: dict[str, Any] = {"barrier": threading.Barrier(2, timeout=10)}
    found: dict[int, bool] = {}

    def ask(rank: int) -> None:
        found[rank] = is_shared_filesystem(Threads(rank, shared), paths[rank], timeout=0.1)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]


def test_one_process_shares_with_itself():
    strategy = Strategy("cpu")
    assert is_shared_filesystem(strategy)
    assert is_shared_filesystem(strategy, "not/there")


def test_processes_that_see_each_others_files_share_them_and_nothing_is_left(tmp_path):
    assert answers(tmp_path, tmp_path) == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_a_file_stands_for_its_folder(tmp_path):
    (tmp_path / "last.ckpt").touch()
    assert answers(tmp_path / "last.ckpt", tmp_path) == [True, True]


def test_a_file_that_another_process_does_not_see_tells_all(tmp_path, monkeypatch):
    monkeypatch.setattr("leyden.utils.machines._appears", lambda file, timeout: threading.current_thread().name == "0")
    assert answers(tmp_path, tmp_path) == [False, False]


def test_remote_files_are_shared():
    assert is_shared_filesystem(Threads(1, {}), "s3://bucket/folder")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path=.*not there"):
        is_shared_filesystem(Threads(1, {}), tmp_path / "not" / "there")
