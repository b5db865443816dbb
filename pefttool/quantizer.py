"""What a quantizer implements. Torch appears only in annotations: importing this is cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pefttool.values import Facts, Options

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
