"""The options of the three quantizers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, create_model

from pefttool import Options

Backend = Literal["auto", "triton", "dequantize", "tiles", "native", "bitsandbytes"]


class Quantized(Options):
    backend: Backend = Field(
        "auto",
        description="what multiplies by the stored weights; `pefttool kernels` says what auto chooses here and why."
        " Another one is used everywhere, or refused",
    )


class FourBitOptions(Quantized):
    double_quant: bool = Field(
        True, description="quantise the blocks' scales too: 0.127 bits a weight instead of 0.5 for them"
    )


class StoredNestedOptions(FourBitOptions):
    """Those of a folder whose weights are stored in 4 bits with double quantisation."""

    double_quant: Literal[True] = Field(True, description="the blocks' scales are quantised too, as they are stored")


class StoredFlatOptions(FourBitOptions):
    """Those of a folder whose weights are stored in 4 bits without double quantisation."""

    double_quant: Literal[False] = Field(False, description="the blocks' scales are in float32, as they are stored")


class EightBitOptions(Quantized):
    threshold: float = Field(
        6.0,
        ge=0,
        allow_inf_nan=False,
        description="pefttool itself rounds no activations, and this changes nothing: a program that loads the adapter"
        " with bitsandbytes alone multiplies activation columns of a larger magnitude in 16 bits; 0: none are",
    )


def stored_in_eight_bits(threshold: float) -> type[EightBitOptions]:
    """Those of a folder whose weights are stored in 8 bits: the threshold is a default, as no weight depends on it."""
    described = EightBitOptions.model_fields["threshold"].description
    field = Field(threshold, ge=0, allow_inf_nan=False, description=described)
    return create_model("StoredEightBitOptions", __base__=EightBitOptions, threshold=(float, field))
