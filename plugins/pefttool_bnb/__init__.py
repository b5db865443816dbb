"""Quantizers that store frozen linear weights with bitsandbytes: nf4, fp4 and int8."""

from collections.abc import Sequence

from pefttool import Quantizer, hookimpl

pefttool_api_version = 1


@hookimpl
def register_quantizers() -> Sequence[Quantizer]:
    from pefttool_bnb.eight_bit import Int8
    from pefttool_bnb.four_bit import FP4, NF4

    return [FP4(), Int8(), NF4()]
