"""Tasks on time series and on tables of numbers, and their formats."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 2


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_series.classification import SeriesClassification
    from pefttool_series.forecasting import SeriesForecasting
    from pefttool_series.tabular import TabularClassification

    return [SeriesClassification(), SeriesForecasting(), TabularClassification()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_series.long_csv import SeriesLong
    from pefttool_series.ts_file import Ts
    from pefttool_series.wide_csv import SeriesWide

    return [SeriesLong(), SeriesWide(), Ts()]
