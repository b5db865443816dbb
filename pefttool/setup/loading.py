"""What is loaded from a model's folder and how, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.facts import Facts
from pefttool.api.task import Task
from pefttool.api.values import Setting
from pefttool.models.quantization import Quantization

if TYPE_CHECKING:
    from torch import nn

    from pefttool.setup.plan import Plan


@dataclass(frozen=True)
class Loading:
    """A model of `task` from the folder `path`, on `device`, its frozen weights in `dtype` or as `quantization` stores
    them. Python code in the folder runs only if it is `trusted`."""

    path: Path
    task: Task
    setting: Setting
    quantization: Quantization | None
    facts: Facts
    device: str
    dtype: str
    trusted: bool = False

    @classmethod
    def of(cls, plan: Plan, path: Path, setting: Setting) -> Loading:
        """The planned model from the folder `path`; a model whose blocks are streamed is never trusted."""
        how = plan.quantization, plan.facts, plan.choice.device, plan.choice.dtype
        return cls(path, plan.task, setting, *how, trusted=plan.trusted and not plan.recipe.memory.stream)


@dataclass(frozen=True)
class LoadedModel:
    """The model and its processor; task heads are, and compute in, float32.

    `missing` are weights outside the new heads that the folder does not have, so that they are random. `notices` are
    what the user should know of how the model was loaded.
    """

    model: nn.Module
    processor: Any
    missing: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
