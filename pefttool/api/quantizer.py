"""What a quantizer implements: a way of storing frozen linear weights. Torch appears only in annotations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pefttool.api.facts import Facts
from pefttool.api.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn


class Quantizer(ABC):
    """A way of storing frozen linear weights. Every quantised linear is callable, knows `in_features` and
    `out_features`, so that adapters need not know quantizers."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    #: Such layers compute something coarser where pefttool is not there to multiply (they round their inputs, too).
    rounds_more_elsewhere: ClassVar[bool] = False
    #: `stored` and `stream` are there: frozen blocks can be fetched when they are needed (`memory.stream`).
    streams: ClassVar[bool] = False
    #: It is one of `of_stored`: the folder's weights are quantised already, and there are no others.
    stored_already: bool = False

    def of_stored(self, stored: Mapping[str, Any], tensors: Collection[str]) -> Quantizer | None:
        """This quantizer, as it is for a base whose folder holds quantised weights, or None if they are another's.

        `stored` is `quantization_config` of config.json, and `tensors` are the names in the folder's files (none where
        there is only a config). What is returned has `stored_already`, this name, and `Options` of the same keys: their
        defaults are what the base was stored with, and another value of what is fixed in the files is refused. Its
        `load_arguments` say how the folder is read. Raises ModelError, with the next step, for weights of this kind
        that cannot be trained on.
        """
        return None

    def stores(self, name: str, linear: nn.Linear) -> bool:
        """Whether this linear layer of the backbone is stored in fewer bits; default: if it is torch's own class."""
        from torch import nn

        return type(linear) is nn.Linear

    def refuses(self, options: Any, facts: Facts) -> str | None:
        """Why this model, device or dtype cannot be quantised, or None; asked before weights are loaded."""
        return None

    @abstractmethod
    def load_arguments(self, options: Any, facts: Facts) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""

    def after_load(self, model: nn.Module, options: Any) -> None:  # noqa: B027
        """Repair or replace modules of the freshly loaded model."""

    @abstractmethod
    def skeleton(self, linear: nn.Linear, options: Any) -> nn.Module:
        """A stand-in of the same storage size with plain parameters, which simulation can hold."""

    def stored(self, linear: nn.Module) -> Mapping[str, Tensor]:
        """What a quantised linear is made of, bias apart: named as the parameters of its `skeleton`, and as large."""
        raise NotImplementedError(f"quantizer {self.name!r} does not say what its layers are made of")

    def stream(self, skeleton: nn.Module, fetch: Callable[[], Mapping[str, Tensor]]) -> None:
        """Let a `skeleton` hold nothing, and call `fetch()` for what `stored` names whenever it needs it.

        It keeps none of these tensors, and saves none for the backward pass, which fetches again. Its outputs and
        gradients are those of the quantised linear, bit by bit.
        """
        raise NotImplementedError(f"quantizer {self.name!r} cannot stream its layers")

    @abstractmethod
    def dequantize(self, linear: nn.Module) -> Tensor:
        """The weight that a quantised linear multiplies by: `[out_features, in_features]`."""

    def round_trip(self, weight: Tensor, options: Any) -> Tensor:
        """What `dequantize` gives, bit by bit, of a linear that was loaded with this weight: for merging.

        `weight` is in the dtype of the run, and on its device.
        """
        raise NotImplementedError(f"quantizer {self.name!r} does not say what becomes of a weight")
