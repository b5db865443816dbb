"""Prefix tuning: trained keys and values before every layer's own, the base frozen."""

from collections.abc import Sequence

from pefttool import Adapter, hookimpl

pefttool_api_version = 2


@hookimpl
def register_adapters() -> Sequence[Adapter]:
    from pefttool_prefix.adapter import PrefixAdapter

    return [PrefixAdapter()]
