"""Running out of memory: recognise it, and free what can be freed."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from leyden.utils.tree import tree_map


def is_oom_error(exception: BaseException) -> bool:
    """True when a device or the host has run out of memory; libraries say so in many ways."""
    return (
        is_cuda_out_of_memory(exception)
        or is_cudnn_snafu(exception)
        or is_out_of_cpu_memory(exception)
        or _says(exception, "out of memory")  # MPS and others raise a plain RuntimeError
    )


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """True when an accelerator has run out of memory."""
    return (
        isinstance(exception, torch.OutOfMemoryError)
        or (_says(exception, "CUDA") and _says(exception, "out of memory"))
        or _says(exception, "CUBLAS_STATUS_ALLOC_FAILED")
    )


def is_cudnn_snafu(exception: BaseException) -> bool:
    """True for the errors that cuDNN gives when it finds no memory to work in."""
    return _says(exception, "CUDNN_STATUS_NOT_SUPPORTED") or _says(exception, "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """True when the host has run out of memory."""
    return isinstance(exception, MemoryError) or (
        _says(exception, "DefaultCPUAllocator")
        and (_says(exception, "can't allocate memory") or _says(exception, "not enough memory"))
    )


def _says(exception: BaseException, text: str) -> bool:
    return isinstance(exception, RuntimeError) and text in str(exception)


def garbage_collection_cuda() -> None:
    """Collect garbage, and give the memory that torch keeps for later back to the CUDA devices."""
    gc.collect()
    try:
        torch.cuda.empty_cache()  # does nothing where no CUDA device is in use
    except RuntimeError as error:  # where memory has just run out, even this can fail for lack of it
        if not is_oom_error(error):
            raise


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """``in_dict``, any nested collection, with every tensor detached, and on the CPU if ``to_cpu``."""

    def detach(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if to_cpu else tensor.detach()

    return tree_map(detach, in_dict)
