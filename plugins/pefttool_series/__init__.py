"""Tasks on time series and on tables of numbers, and their formats."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 1


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_series.tabular import TabularClassification

    return [TabularClassification()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    return []
