"""What turns recordings and transcripts into a model's inputs: one kind for each way of recognising speech."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool_audio import recordings

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

#: Positions with this label do not count in the loss (PyTorch's and transformers' convention).
IGNORE = -100


class Listener(ABC):
    """A transformers processor and what of the model's config it needs beside.

    Encoded rows are `{"audio": path, **written(text)}`; an empty path is silence (a simulation), and has labels only.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, self.config = processor, config

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def rate(self) -> int:
        """Samples in a second, as the model wants them."""
        return int(self.processor.feature_extractor.sampling_rate)

    def samples(self, path: str) -> np.ndarray[Any, Any]:
        return recordings.read(path, self.rate)

    def seconds(self, path: str) -> float:
        return recordings.seconds(path)

    def save_pretrained(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def shown(self, labels: Sequence[int]) -> str:
        """The text that labels of one row stand for."""
        return str(self.tokenizer.decode(labels))

    @abstractmethod
    def written(self, text: str) -> dict[str, Any]:
        """What the model is to write for this transcript: its `labels`, and what it is given beside the recording."""

    @abstractmethod
    def positions(self, path: str, labels: Sequence[int]) -> int:
        """Positions that the model computes for a row."""

    @abstractmethod
    def unfit(self, path: str, labels: Sequence[int]) -> str | None:
        """Why the model cannot learn this row whatever its options are, or None."""

    def learnable(self, path: str, labels: Sequence[int]) -> bool:
        """Whether there is anything to train in this row; it is left out and counted otherwise."""
        return bool(labels)

    def unlearnable(self, path: str, labels: Sequence[int]) -> str:
        """Why a row that is not `learnable` is none, and what to do."""
        return "nothing of its transcript is left to write: give the words that are said"

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Encoded rows as a batch, with what `loss` needs."""

    @abstractmethod
    def transcribe(self, model: nn.Module, paths: Sequence[str], generation: Mapping[str, Any]) -> list[str]:
        """What the model hears in these recordings."""


def padded(rows: Sequence[Sequence[Any]], value: float, dtype: Any) -> Tensor:
    """`[B, longest]`, filled up with `value` on the right."""
    import numpy as np
    import torch

    out = np.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(out)


def as_weights(values: Tensor, model: Any) -> Tensor:
    """Sound in the precision of the model's weights."""
    return values.to(model.dtype)
