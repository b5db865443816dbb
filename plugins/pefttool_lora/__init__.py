"""LoRA: a trained low-rank update beside every chosen linear layer, the base frozen."""

from collections.abc import Sequence

from pefttool import Adapter, hookimpl

pefttool_api_version = 2


@hookimpl
def register_adapters() -> Sequence[Adapter]:
    from pefttool_lora.adapter import LoraAdapter

    return [LoraAdapter()]
