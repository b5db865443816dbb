"""int8: a weight is an 8-bit integer times its row's scale (largest magnitude / 127).

The products are weight-only: activations are never quantised, in training, evaluation and generation alike. Whoever
loads the result without pefttool gets bitsandbytes' LLM.int8 outside training, which quantises activations too, row by
row, except the columns that pass the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pefttool import Facts, Quantizer
from pefttool_bnb import backends, loading
from pefttool_bnb.options import EightBitOptions, stored_in_eight_bits

if TYPE_CHECKING:
    from torch import Tensor, nn


class Int8(Quantizer):
    """8 bits a weight: integers, and a scale for each row of a matrix (LLM.int8(), arXiv:2208.07339)."""

    name = "int8"
    Options = EightBitOptions
    streams = True
    rounds_more_elsewhere = True
    #: Of a folder that is stored so already: patterns of what it keeps in floating point, where it says so.
    plain: tuple[str, ...] | None = None

    def of_stored(self, stored: Mapping[str, Any], tensors: Collection[str]) -> Quantizer | None:
        if not stored.get("load_in_8bit"):
            return None
        found = type(self)()
        found.plain, found.stored_already = loading.read_stored(stored, tensors, ".SCB"), True
        found.Options = stored_in_eight_bits(stored.get("llm_int8_threshold", 6.0))  # type: ignore[misc]
        return found

    def stores(self, name: str, linear: nn.Linear) -> bool:
        return super().stores(name, linear) and not loading.keeps(name, self.plain)

    def refuses(self, options: EightBitOptions, facts: Facts) -> str | None:
        return loading.refusal(self.name, facts) or backends.refusal("linear_8bit", options.backend, facts)

    def load_arguments(self, options: EightBitOptions, facts: Facts) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        loading.bitsandbytes()
        config = BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=options.threshold,
            llm_int8_skip_modules=loading.unquantised(facts, self.plain),
        )
        return loading.load_arguments(config, facts)

    def after_load(self, model: nn.Module, options: EightBitOptions) -> None:
        """Give the layers our forward pass: weight-only, and without bitsandbytes' recast of the bias in place."""
        library = loading.bitsandbytes()
        layers = loading.repair(model, self.name, library.nn.Linear8bitLt, library.nn.Int8Params, self.stored_already)
        loading.fuse(model, options.backend)
        backends.require("linear_8bit", options.backend, layers)

    def skeleton(self, linear: nn.Linear, options: EightBitOptions) -> nn.Module:
        from pefttool_bnb.skeleton import EightBitSkeleton

        return EightBitSkeleton(linear, options.backend)

    def stored(self, linear: nn.Module) -> dict[str, Tensor]:
        values, scales = _stored(linear)
        return {"weight": values, "SCB": scales}

    def stream(self, skeleton: Any, fetch: Callable[[], Mapping[str, Tensor]]) -> None:
        skeleton.stream(fetch)

    def dequantize(self, linear: nn.Module) -> Tensor:
        """`[out_features, in_features]`, float32."""
        dequantized: Tensor = loading.bitsandbytes().functional.int8_vectorwise_dequant(*_stored(linear))
        return dequantized

    def round_trip(self, weight: Tensor, options: EightBitOptions) -> Tensor:
        library = loading.bitsandbytes()
        stored = library.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(weight.device)
        dequantized: Tensor = library.functional.int8_vectorwise_dequant(stored.CB, stored.SCB)
        return dequantized


def _stored(linear: Any) -> tuple[Tensor, Tensor]:
    """(values, scales): the layer's state takes them over at its first forward pass."""
    holder = linear.weight if linear.weight.CB is not None else linear.state
    return holder.CB, holder.SCB
