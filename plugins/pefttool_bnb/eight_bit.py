"""int8: a weight is an 8-bit integer times its row's scale (largest magnitude / 127).

The products are weight-only: activations are never quantised, in training, evaluation and generation alike. Whoever
loads the result without pefttool gets bitsandbytes' LLM.int8 outside training, which quantises activations too, row by
row, except the columns that pass the threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttool import Facts, Quantizer
from pefttool_bnb import loading
from pefttool_bnb.options import EightBitOptions

if TYPE_CHECKING:
    from torch import Tensor, nn


class Int8(Quantizer):
    name = "int8"
    Options = EightBitOptions

    def refuses(self, options: EightBitOptions, facts: Facts) -> str | None:
        return loading.refusal(self.name, facts)

    def load_arguments(self, options: EightBitOptions, facts: Facts) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        loading.bitsandbytes()
        config = BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=options.threshold,
            llm_int8_skip_modules=loading.unquantised(facts),
        )
        return loading.load_arguments(config, facts)

    def after_load(self, model: nn.Module, options: EightBitOptions) -> None:
        """Give the layers our forward pass: weight-only, and without bitsandbytes' recast of the bias in place."""
        library = loading.bitsandbytes()
        loading.repair(model, self.name, library.nn.Linear8bitLt, library.nn.Int8Params)
        loading.fuse(model, options.backend)

    def skeleton(self, linear: nn.Linear, options: EightBitOptions) -> nn.Module:
        from pefttool_bnb.skeleton import EightBitSkeleton

        return EightBitSkeleton(linear)

    def dequantize(self, linear: nn.Module) -> Tensor:
        """`[out_features, in_features]`, float32. The layer's state takes the weight over at its first forward pass."""
        weight: Any = linear.weight
        state: Any = linear.state
        values, scales = (weight.CB, weight.SCB) if weight.CB is not None else (state.CB, state.SCB)
        dequantized: Tensor = loading.bitsandbytes().functional.int8_vectorwise_dequant(values, scales)
        return dequantized
