"""When memory runs out: how it is recognised, how it is freed, and how a batch is cut into smaller ones."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

#: What libraries write when an allocation fails and they raise a plain RuntimeError.
SIGNS = (
    "can't allocate memory",  # PyTorch on a CPU
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA's driver, MPS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle is made at the first product, and there was no room for it
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a failed allocation, in whatever way it is told."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release(device: str) -> None:
    """Free what the failed attempt left. Call it outside the `except` block: the traceback's frames hold tensors."""
    import torch

    gc.collect()
    if torch.device(device).type in ("cuda", "mps"):
        torch.get_device_module(device).empty_cache()


def halves(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """`rows`, in their order, in two parts of about as many tokens; a single row as it is."""
    if len(rows) < 2:
        return [list(rows)]
    tokens = list(accumulate(lengths[row] for row in rows))
    middle = next(i for i, reached in enumerate(tokens, 1) if 2 * reached >= tokens[-1])
    cut = min(middle, len(rows) - 1)
    return [list(rows[:cut]), list(rows[cut:])]


def split(batches: Sequence[Sequence[int]], lengths: Sequence[int], times: int) -> list[list[int]]:
    """Every batch halved `times` times, in order: the same rows, in more forward passes."""
    parts = [list(batch) for batch in batches]
    for _ in range(times):
        parts = [half for part in parts for half in halves(part, lengths)]
    return parts
