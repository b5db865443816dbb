"""How long it takes at least to feed a streamed step: what has to be fetched, over a rate measured here."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool.config import sizes
from pefttool.files import cache_folder
from pefttool.nn.block_streaming import Slots
from pefttool.setup import streamed_base
from pefttool.setup.loading import Loading
from pefttool.setup.plan import Plan

#: Read, or copied, to measure a rate.
SAMPLE = 256 << 20
PIECE = 8 << 20


@dataclass(frozen=True)
class Feeding:
    """A step fetches `bytes` at `rate` bytes a second at best; `source` says what was measured."""

    bytes: int
    rate: float
    source: str

    @property
    def seconds(self) -> float:
        return self.bytes / self.rate

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": self.seconds}

    def __str__(self) -> str:
        amount = f"{sizes.show(self.bytes)} at {sizes.show(int(self.rate))}/s ({self.source})"
        return f"a step fetches {amount}: {self.seconds:.3g} s at least, until the system has the file in memory"


def floor(plan: Plan) -> Feeding:
    """Of one optimiser step of a plan with `memory.stream`. Takes a second or two: the rates are measured.

    A file that the system can keep in memory is read from disk once only: then this is the first step's.
    """
    assert plan.quantization is not None and plan.recipe.memory.stream
    loading = Loading.of(plan, plan.model.path, plan.setting())
    _, slots, _ = streamed_base.skeleton(loading)
    size = step_bytes(slots) * plan.recipe.train.gradient_accumulation
    file = streamed_base.file_for(loading)
    rates = [(reading_rate(file), f"measured: reading {SAMPLE >> 20} MiB in {cache_folder.cache_folder()}")]
    copying = copying_rate(plan.choice.device)
    if copying is not None:
        rates.append((copying, f"measured: copying {SAMPLE >> 20} MiB to {plan.choice.device}"))
    return Feeding(size, *min(rates))


def step_bytes(slots: Slots) -> int:
    """What a forward and a backward pass fetch, once the blocks that are held at a turn of the walk are there.

    Checkpointing adds nothing: what recomputes a block and its backward pass follow each other.
    """
    sizes = [section.size for section in slots.sections]
    held = slots.most
    return sum(sizes[held:]) + sum(sizes[: len(sizes) - held])


def reading_rate(file: Path) -> float:
    """Bytes a second from the disk of `file`, which is read if it is there; what is in memory is dropped before."""
    if file.is_file() and file.stat().st_size >= SAMPLE:
        return _read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".rate-") as scratch:
        for _ in range(SAMPLE // PIECE):
            scratch.write(os.urandom(PIECE))
        scratch.flush()
        os.fsync(scratch.fileno())
        return _read(Path(scratch.name))


def _read(path: Path) -> float:
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, SAMPLE, os.POSIX_FADV_DONTNEED)
        began, left = time.perf_counter(), SAMPLE
        while left > 0 and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
        return (SAMPLE - left) / (time.perf_counter() - began)


def copying_rate(device: str) -> float | None:
    """Bytes a second from pinned memory to a CUDA device; None for others, and for a card that is not here.

    No card has run it yet.
    """
    import torch

    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return None
    source = torch.empty(SAMPLE, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(source, device=device, pin_memory=False)
    there.copy_(source)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    there.copy_(source)
    torch.cuda.synchronize(device)
    return SAMPLE / (time.perf_counter() - began)
