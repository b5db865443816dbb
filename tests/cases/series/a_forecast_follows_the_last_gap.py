"""What is encoded of a series of 20 values with a gap after the twelfth."""

from typing import Any

from case_bench import Bench

from pefttool import Row, Setting


def check(bench: Bench) -> None:
    from pefttool_series.forecasting import SeriesForecasting, SeriesForecastingOptions
    from pefttool_series.processor import SeriesProcessor

    times = [*range(12), *range(50, 58)]
    values = [float(i) for i in range(20)]
    task, processor = SeriesForecasting(), SeriesProcessor(context_length=20, channels=1, patches=1)
    gaps: Any
    for gaps, stamped, right in (("split", True, 8), ("join", True, 20), ("split", False, 20)):
        setting = Setting(SeriesForecastingOptions(prediction_length=2, gaps=gaps))
        row = Row({"series": values, **({"timestamps": times} if stamped else {})})
        encoded = task._encode_past(row, processor, setting)
        assert encoded["padded"] == 20 - right
        assert encoded["values"][-right:] == values[-right:] and sum(encoded["observed"]) == right
