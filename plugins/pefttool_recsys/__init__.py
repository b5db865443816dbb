"""Recommendation tasks, and the logs that they learn from."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 2


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_recsys.next_item import NextItem

    return [NextItem()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_recsys.interactions import Interactions

    return [Interactions()]
