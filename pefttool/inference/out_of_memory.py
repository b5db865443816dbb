"""When memory runs out: how it is recognised, how it is freed, and how a batch is cut into smaller ones."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from pefttool.api.errors import RunError

if TYPE_CHECKING:
    from pefttool.inference.predictor import Predictor

Answer = TypeVar("Answer")

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


def in_batches(
    predictor: Predictor,
    examples: Sequence[Mapping[str, Any]],
    batches: Sequence[Sequence[int]],
    ask: Callable[[list[int]], Answer],
    what: str,
    halved: Callable[[list[list[int]]], object] = lambda left: None,
) -> Iterator[tuple[list[int], Answer]]:
    """(rows, `ask(rows)`) for each of these batches of row numbers, in their order; `what` names the work.

    A batch that does not fit in memory is halved, as are all that follow; `halved` is told the batches that are left.
    Raises RunError where a single row does not fit.
    """
    lengths = [int(example["length"]) for example in examples]
    waiting = [list(batch) for batch in reversed(batches)]
    while waiting:
        batch = waiting.pop()
        try:
            answer = ask(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            yield batch, answer
            continue
        release(predictor.choice.device)
        if len(batch) < 2:
            raise RunError(
                f"memory ran out in {what} with one row of {lengths[batch[0]]} tokens: lower train.sequence_length"
                f" ({predictor.setting.sequence_length})"
            )
        waiting = [half for later in (*waiting, batch) for half in reversed(halves(later, lengths))]
        halved(waiting[::-1])


def split(batches: Sequence[Sequence[int]], lengths: Sequence[int], times: int) -> list[list[int]]:
    """Every batch halved `times` times, in order: the same rows, in more forward passes."""
    parts = [list(batch) for batch in batches]
    for _ in range(times):
        parts = [half for part in parts for half in halves(part, lengths)]
    return parts
