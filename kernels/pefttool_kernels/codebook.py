"""The sixteen values of a 4-bit code, as bitsandbytes stores them: float32, largest magnitude 1.

Source: QLoRA (arXiv 2305.14314), appendix E, for NF4; bitsandbytes' `quant_state.code` for both. A test compares them
with the installed bitsandbytes, bit by bit.
"""

from __future__ import annotations

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

#: Sign, then three bits that count through 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4.
FP4 = (
    0.0,
    0.005208333333333333,
    0.6666666666666666,
    1.0,
    0.3333333333333333,
    0.5,
    0.16666666666666666,
    0.25,
    0.0,
    -0.005208333333333333,
    -0.6666666666666666,
    -1.0,
    -0.3333333333333333,
    -0.5,
    -0.16666666666666666,
    -0.25,
)
