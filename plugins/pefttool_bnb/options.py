"""The options of the three quantizers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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


class FlatFourBitOptions(FourBitOptions):
    """Those of a folder that was stored without it."""

    double_quant: bool = Field(False, description="the blocks' scales are in float32")


class EightBitOptions(Quantized):
    threshold: float = Field(
        6.0,
        ge=0,
        allow_inf_nan=False,
        description="activation columns with a larger magnitude are multiplied in 16 bits; 0: none are",
    )
