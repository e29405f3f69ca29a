"""Which errors say that memory has run out."""

from __future__ import annotations

import pytest
import torch

from leyden.utils.memory import (
    garbage_collection_cuda,
    is_cuda_out_of_memory,
    is_cudnn_snafu,
    is_oom_error,
    is_out_of_cpu_memory,
    recursive_detach,
)

CUDA = [
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.OutOfMemoryError("Allocation on device"),
]
CUDNN = [RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ...")]
CPU = [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()]


@pytest.mark.parametrize(
    ("check", "errors"), [(is_cuda_out_of_memory, CUDA), (is_cudnn_snafu, CUDNN), (is_out_of_cpu_memory, CPU)]
)
def test_errors_are_told_apart(check, errors):
    assert [error for error in [*CUDA, *CUDNN, *CPU] if check(error)] == errors


@pytest.mark.parametrize("error", [*CUDA, *CUDNN, *CPU, RuntimeError("MPS backend out of memory (MPS allocated: 3)")])
def test_all_of_them_are_out_of_memory(error):
    assert is_oom_error(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2"), ValueError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_other_errors_are_not(error):
    assert not is_oom_error(error)


def test_what_torch_raises_for_too_large_a_tensor_is():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_oom_error(caught.value)


def test_garbage_can_be_collected_without_cuda():
    garbage_collection_cuda()


def test_nested_tensors_are_detached():
    weight = torch.ones(2, requires_grad=True)
    detached = recursive_detach({"a": [weight * 2, 3], "b": "text"}, to_cpu=True)
    assert not detached["a"][0].requires_grad
    assert (detached["a"][1], detached["b"]) == (3, "text")
