"""The peak of what PyTorch's allocator hands out while something runs, by its own account."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Peak:
    """`bytes` at a time, once the measured block has ended; None where nothing can be asked (MPS)."""

    bytes: int | None = None


@contextmanager
def peak(device: str, lasting: Iterable[Tensor]) -> Iterator[Peak]:
    """Measures what is allocated on `device` at a time within the block.

    A CUDA device counts for itself. On a CPU the profiler reports every allocation, which makes a step about a tenth
    slower; it knows nothing of what was there before: those are the `lasting` tensors.
    """
    import torch

    found, kind = Peak(), torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = int(torch.cuda.max_memory_allocated(device))
    elif kind == "cpu":
        before = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in lasting}.values())
        with _profiled() as profiler:
            yield found
        found.bytes = before + highest(profiler)
    else:
        yield found


@contextmanager
def _profiled() -> Iterator[Any]:
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes two lines to standard error at every use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield profiler


def highest(profiler: Any) -> int:
    """The most bytes at a time among the allocations and releases that a profiler has seen."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
