"""Memory: whether an error says that there was no more, room for the next attempt, and the way to the device.

Why   an allocator, a library's workspace and a collective say it each in its own words. torch only, so that a bare GPU
      host can import it (benchmarks/train.py does).
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor

FULL = (
    "out of memory",  # CUDA's allocator and its driver ("CUDA error: out of memory"), HIP
    "can't allocate memory",  # the host's allocator
    "_ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUFFT_
    "Failed to CUDA calloc",  # NCCL's buffers, made at a first collective
    "CUDNN_STATUS_NOT_SUPPORTED.",  # cuDNN, of a workspace that it could not have; accelerate takes it so, too
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host's allocator, had no more."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
    return told or isinstance(error, torch.OutOfMemoryError)


def release(device: torch.device) -> None:
    """Gives freed memory back, so that the next attempt finds it in one piece."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`, and nothing waits for it: to a GPU from pinned memory.

    A copy from elsewhere waits until the GPU has done all that it was told before, which then stands idle until it is
    told more.
    """
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
