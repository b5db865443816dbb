"""nf4 and fp4: blocks of 64 weights share a scale; a weight is one of 16 values times its block's scale."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pefttool import Facts, Quantizer
from pefttool_bnb import backends, loading
from pefttool_bnb.options import FourBitOptions, StoredFlatOptions, StoredNestedOptions

if TYPE_CHECKING:
    from torch import Tensor, nn


class FourBit(Quantizer):
    Options = FourBitOptions
    streams = True
    #: Of a folder that is stored so already: patterns of what it keeps in floating point, where it says so.
    plain: tuple[str, ...] | None = None

    def of_stored(self, stored: Mapping[str, Any], tensors: Collection[str]) -> Quantizer | None:
        if not stored.get("load_in_4bit") or stored.get("bnb_4bit_quant_type", "fp4") != self.name:
            return None
        found = type(self)()
        found.plain, found.stored_already = loading.read_stored(stored, tensors, ".weight.absmax"), True
        nested = stored.get("bnb_4bit_use_double_quant", False)
        found.Options = StoredNestedOptions if nested else StoredFlatOptions  # type: ignore[misc]
        return found

    def stores(self, name: str, linear: nn.Linear) -> bool:
        return super().stores(name, linear) and not loading.keeps(name, self.plain)

    def refuses(self, options: FourBitOptions, facts: Facts) -> str | None:
        return loading.refusal(self.name, facts) or backends.refusal("linear_4bit", options.backend, facts)

    def load_arguments(self, options: FourBitOptions, facts: Facts) -> dict[str, Any]:
        """The compute dtype is the run's own: another one would make bitsandbytes recast the biases in place."""
        import torch
        from transformers import BitsAndBytesConfig

        loading.bitsandbytes()
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=options.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, facts.dtype),
            llm_int8_skip_modules=loading.unquantised(facts, self.plain),
        )
        return loading.load_arguments(config, facts)

    def after_load(self, model: nn.Module, options: FourBitOptions) -> None:
        """Give the layers our forward pass, which keeps the storage as it was loaded.

        In eval mode on a CPU with AVX512-BF16, bitsandbytes' own repacks a layer's weights in place, rounds its scales
        to bfloat16, and from then on calls an operator without autograd: an evaluation between two training steps
        would change the base and cut gradients off. `train()` does not undo it.
        """
        library = loading.bitsandbytes()
        layers = loading.repair(model, self.name, library.nn.Linear4bit, library.nn.Params4bit, self.stored_already)
        if self.stored_already:  # its states have the dtype that it was quantised from, whatever the run's is
            for layer in layers:
                layer.weight.quant_state.dtype = layer.compute_dtype
        loading.fuse(model, options.backend)
        backends.require("linear_4bit", options.backend, layers)

    def skeleton(self, linear: nn.Linear, options: FourBitOptions) -> nn.Module:
        from pefttool_bnb.skeleton import FourBitSkeleton

        backends.require("linear_4bit", options.backend, [linear])
        return FourBitSkeleton(linear, options.double_quant, self.name, options.backend)

    def stored(self, linear: nn.Module) -> dict[str, Tensor]:
        weight: Any = linear.weight
        state = weight.quant_state
        tensors = {"weight": weight.data, "code": state.code, "absmax": state.absmax}
        if state.nested:
            tensors |= {"offset": state.offset, "nested_absmax": state.state2.absmax, "nested_code": state.state2.code}
        return tensors

    def stream(self, skeleton: Any, fetch: Callable[[], Mapping[str, Tensor]]) -> None:
        skeleton.stream(fetch)

    def dequantize(self, linear: nn.Module) -> Tensor:
        """`[out_features, in_features]` in the dtype the weight was quantised from (the run's)."""
        weight: Any = linear.weight
        dequantized: Tensor = loading.bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
        return dequantized

    def round_trip(self, weight: Tensor, options: FourBitOptions) -> Tensor:
        library = loading.bitsandbytes()
        stored = library.nn.Params4bit(
            weight, requires_grad=False, quant_type=self.name, compress_statistics=options.double_quant
        ).to(weight.device)
        dequantized: Tensor = library.functional.dequantize_4bit(stored.data, stored.quant_state)
        return dequantized


class NF4(FourBit):
    """4 bits a weight: 16 values that are spaced for normally distributed weights (QLoRA, arXiv:2305.14314)."""

    name = "nf4"


class FP4(FourBit):
    """4 bits a weight: 16 floating-point values, as bitsandbytes has them."""

    name = "fp4"
