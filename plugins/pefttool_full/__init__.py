"""Full fine-tuning: every parameter of the model trains (or, on request, the last blocks)."""

from collections.abc import Sequence

from pefttool import Adapter, hookimpl

pefttool_api_version = 2


@hookimpl
def register_adapters() -> Sequence[Adapter]:
    from pefttool_full.adapter import FullAdapter

    return [FullAdapter()]
