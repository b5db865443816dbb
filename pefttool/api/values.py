"""The values that plugins are given and hand back. Torch appears only in annotations: importing this is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """Something that stands in the way of a run, found before anything is loaded.

    `key` is the user's own key, such as `adapter.r`; `message` names the value, what is allowed and the next step.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class Caution(str):
    """A line for the user that warns: what it tells of is probably not meant. A plain `str` informs."""

    __slots__ = ()


def told(text: str) -> str:
    """The line as it is printed, or written into JSON."""
    return f"warning: {text}" if isinstance(text, Caution) else text


@dataclass(frozen=True)
class Row:
    """One row of data and where it came from: `values` by column; `line` counts from 1 (a record, for Parquet)."""

    values: Mapping[str, Any]
    file: str = "<text>"
    line: int = 1

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Arranged:
    """Rows to train on and rows to judge by, with lines that the user should read of how they came to be."""

    train: tuple[Row, ...]
    eval: tuple[Row, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attached:
    """What `Adapter.attach` hands back.

    trainable           names in `model.named_parameters()` that the adapter trains (task heads are the core's)
    identity_at_init    the adapted model's outputs equal the base's before the first step
    modules             for an adapter that was told modules by name: the base's names of those that it changed. Every
                        trainable parameter has to be inside one of them, and each of them to hold one
    """

    model: nn.Module
    trainable: frozenset[str]
    identity_at_init: bool = True
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a task's methods may depend on besides the model and the rows; saved with the adapter.

    With `packing`, `collate` lays rows one behind another in one sequence, and `loss` keeps them apart. `fitted` is
    what `Task.fit` made of the training rows (empty while there are none: a plan). `epoch` counts from 0 in training,
    and is None elsewhere: what is changed in training only (augmentation) draws from `seed`, `epoch` and the row, so
    that a resumed run draws the same.
    """

    options: Any
    labels: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)
    sequence_length: int = 512
    frozen_backbone: bool = False
    packing: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    epoch: int | None = None


@dataclass(frozen=True)
class Loss:
    """A batch's loss as a sum over `weight` units (rows, trained tokens): the objective is sum/weight over a step.

    `outputs` is whatever `Task.decode` needs to turn this forward pass into predictions (or None).
    """

    sum: Tensor
    weight: Tensor
    outputs: Any = None


@dataclass(frozen=True)
class Loaded:
    """A pretrained model and what encodes its inputs (tokenizer, image processor, feature extractor)."""

    model: nn.Module
    processor: Any


@dataclass(frozen=True)
class DataProblem:
    """A record that is no row: where, what was found, what was expected."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"
