"""What a task is given to load a pretrained model and its processor from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.data import DataFormat as DataFormat
from pefttool.api.data import Source as Source
from pefttool.api.quantizer import Quantizer as Quantizer

if TYPE_CHECKING:
    from torch import nn


class Pretrained(ABC):
    """A pretrained model on disk, as a task's `load` sees it."""

    path: Path
    config: Any
    #: Rows will be encoded. False: a plan without data, which need not know what only rows need (a language).
    for_rows: bool = True
    #: The model has no data, only shapes.
    abstract: bool = False
    #: Parameters of the model that the folder lacks, so that they start new; known once `model` has been called.
    missing: tuple[str, ...] = ()
    #: What the user should know of the model.
    notices: tuple[str, ...] = ()

    @abstractmethod
    def model(self, auto_class: Any, **overrides: Any) -> nn.Module:
        """`auto_class.from_pretrained` with the run's dtype and quantizer, or an abstract model of the same shape."""

    @abstractmethod
    def processor(self, auto_class: Any) -> Any:
        """`auto_class.from_pretrained` for a tokenizer or processor; None if an abstract model has none."""
