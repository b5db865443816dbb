"""What a planned run takes at its peak, on this machine or another: simulated tensors, and what lies outside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pefttool import outside, simulate
from pefttool.memory import Estimate
from pefttool.outside import Outside
from pefttool.plan import Plan
from pefttool.settings import TrainSettings

TRAIN_KEYS = ("batch_size", "batch_tokens", "gradient_accumulation", "sequence_length", "gradient_checkpointing")


@dataclass(frozen=True)
class Forecast:
    """The largest micro-batch is `rows` rows of `tokens` tokens; `memory` is what the device has, if that is known."""

    plan: Plan
    rows: int
    tokens: int
    estimate: Estimate
    outside: tuple[Outside, ...]
    memory: int | None = None

    @property
    def total_bytes(self) -> int:
        return self.estimate.peak_bytes + sum(share.bytes for share in self.outside)

    @property
    def fits(self) -> bool | None:
        """In the device's memory; None where that is not known."""
        return None if self.memory is None else self.total_bytes <= self.memory

    def as_json(self) -> dict[str, Any]:
        return {
            **self.plan.as_json(),
            "parameters": self.plan.facts.parameters,
            "settings": self._settings(),
            "micro_batch": {"rows": self.rows, "tokens": self.tokens},
            "peak_bytes": self.estimate.peak_bytes,
            "parts": dict(self.estimate.parts),
            "phase": self.estimate.phase,
            "outside": [vars(share) for share in self.outside],
            "total_bytes": self.total_bytes,
            "memory_bytes": self.memory,
            "fits": self.fits,
        }

    def _settings(self) -> dict[str, Any]:
        """The recipe's keys that decide on memory, as `-o` takes them."""
        recipe = self.plan.recipe.as_document()
        keys = {"train": TRAIN_KEYS, "memory": ("offload", "stream")}
        return {f"{section}.{key}": recipe[section][key] for section, names in keys.items() for key in names}


def make(plan: Plan, memory: int | None = None) -> Forecast:
    """Simulate the largest micro-batch that the recipe allows. Raises UsageError where a task cannot be simulated."""
    rows, tokens = largest(plan.recipe.train)
    estimate = simulate.peak(plan, plan.setting(), rows, tokens)
    return Forecast(plan, rows, tokens, estimate, outside.shares(plan.choice.device, estimate), memory)


def largest(settings: TrainSettings) -> tuple[int, int]:
    """(rows, tokens of each): as long as rows may be, and as many as fit."""
    tokens = settings.sequence_length
    rows = settings.batch_size if settings.batch_tokens is None else max(1, settings.batch_tokens // tokens)
    return rows, tokens


def memory_here(device: str) -> int | None:
    """Bytes of memory that `device` of this machine has, all of it; None where nobody can say (MPS)."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(int(index or 0)).total_memory)
    if kind == "cpu":
        import psutil

        return int(psutil.virtual_memory().total)
    return None
