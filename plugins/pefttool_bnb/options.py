"""The options of the three quantizers."""

from __future__ import annotations

from pydantic import Field

from pefttool import Options


class FourBitOptions(Options):
    double_quant: bool = Field(
        True, description="quantise the blocks' scales too: 0.127 bits a weight instead of 0.5 for them"
    )


class EightBitOptions(Options):
    threshold: float = Field(
        6.0,
        ge=0,
        allow_inf_nan=False,
        description="activation columns with a larger magnitude are multiplied in 16 bits; 0: none are",
    )
