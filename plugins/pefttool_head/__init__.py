"""Head-only training: the output layer (and, on request, the last blocks) on a frozen backbone."""

from collections.abc import Sequence

from pefttool import Adapter, hookimpl

pefttool_api_version = 2


@hookimpl
def register_adapters() -> Sequence[Adapter]:
    from pefttool_head.adapter import HeadAdapter

    return [HeadAdapter()]
