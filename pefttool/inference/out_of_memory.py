"""When memory runs out: how it is recognised, how it is freed, and how a batch is cut into smaller ones."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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


class RandomState:
    """What a step may draw from, to be gone back to: PyTorch on the CPU and the device that computes, Python, NumPy.

    Of one process and for a moment; `random_state` has what is stored.
    """

    def __init__(self, device: str) -> None:
        import numpy
        import torch

        self.others = random.getstate(), numpy.random.get_state(legacy=True)
        self.device = torch.device(device)
        self.states = [torch.get_rng_state()]
        if self.device.type in ("cuda", "mps"):
            self.states.append(torch.get_device_module(self.device).get_rng_state(self.device))

    def restore(self) -> None:
        import numpy
        import torch

        random.setstate(self.others[0])
        numpy.random.set_state(self.others[1])
        torch.set_rng_state(self.states[0])
        for state in self.states[1:]:
            torch.get_device_module(self.device).set_rng_state(state, self.device)


class Attempt:
    """One try at an optimiser step: how far it came, and whether its update has begun to be applied."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.phase = "forward"
        self.marks: dict[tuple[int, str], int] = {}

    def enter(self, phase: str) -> None:
        """What `optimizer_step` tells."""
        self.phase = phase
        if phase == "optimizer":
            self.marks = self._marks()

    @property
    def applied(self) -> bool:
        """A parameter or a part of the optimiser's state was changed: this try cannot be made undone.

        PyTorch does not see what its fused updates change, and need not: they allocate nothing once they have begun.
        """
        return self.phase == "optimizer" and any(self.marks.get(key, 0) != now for key, now in self._marks().items())

    def _marks(self) -> dict[tuple[int, str], int]:
        """How often PyTorch has seen each tensor changed in place; the number itself of what counts steps."""
        found = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                held: dict[str, Any] = {"": parameter, **self.optimizer.state.get(parameter, {})}
                found.update({(id(parameter), name): _mark(value) for name, value in held.items()})
        return found


def _mark(value: Any) -> int:
    version: int | None = getattr(value, "_version", None)
    return version if version is not None else int(value) if isinstance(value, int | float) else 0
