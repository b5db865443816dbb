"""How a run's frozen linear weights are stored: a quantizer and its options, which always travel together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool.api.facts import Facts
from pefttool.api.options import Options
from pefttool.api.quantizer import Quantizer

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Quantization:
    """A quantizer with its validated options: what depends on the options is asked here, and not of the quantizer."""

    quantizer: Quantizer
    options: Options

    @classmethod
    def default(cls, quantizer: Quantizer) -> Quantization:
        """The quantizer with every option at its default."""
        return cls(quantizer, quantizer.Options())

    @property
    def name(self) -> str:
        return self.quantizer.name

    @property
    def stored_already(self) -> bool:
        """Whether the base's folder holds quantised weights, and no others."""
        return self.quantizer.stored_already

    def described(self) -> list[Any]:
        """The name and the options as plain values: for keys of whatever is made from weights that are stored so."""
        return [self.name, self.options.model_dump(mode="json")]

    def refuses(self, facts: Facts) -> str | None:
        return self.quantizer.refuses(self.options, facts)

    def load_arguments(self, facts: Facts) -> dict[str, Any]:
        return self.quantizer.load_arguments(self.options, facts)

    def after_load(self, model: nn.Module) -> None:
        self.quantizer.after_load(model, self.options)

    def skeleton(self, linear: nn.Linear) -> nn.Module:
        return self.quantizer.skeleton(linear, self.options)

    def round_trip(self, weight: Tensor) -> Tensor:
        return self.quantizer.round_trip(weight, self.options)
