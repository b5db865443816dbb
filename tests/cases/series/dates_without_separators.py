"""Daily, hourly and monthly values, whose dates are written as numbers."""

import re
from datetime import datetime, timedelta

from case_bench import Bench

KINDS = {
    "%Y%m%d": [datetime(2022, 1, 1) + timedelta(days=i) for i in range(200)],
    "%Y%m%d%H": [datetime(2022, 1, 1) + timedelta(hours=i) for i in range(200)],
    "%Y%m": [datetime(2005 + i // 12, 1 + i % 12, 1) for i in range(200)],
}
HOLE = 100  # the value after which three are missing


def check(bench: Bench) -> None:
    words = ("--task", "series-forecasting", "--format", "series-long", "-o", "task.prediction_length=4")
    for written, times in KINDS.items():
        told = []
        for name, kept in (("whole", times), ("hole", [*times[:HOLE], *times[HOLE + 3 :]])):
            data = bench.folder / f"{name}.csv"
            data.write_text("time,y\n" + "".join(f"{t:{written}},{i % 7}\n" for i, t in enumerate(kept)))
            answer = bench.pefttool("data", "check", data, *words)
            assert answer.code == 0, answer.text
            told.append(re.findall(r"(\d+) gaps .* the longest is (.*?) after (\d+)", answer.text))
        step = (times[HOLE + 3] - times[HOLE - 1]).total_seconds()
        shown = {"%Y%m%d": "4 d", "%Y%m%d%H": "4 h", "%Y%m": f"{step / 86400:.3g} d"}[written]
        assert told == [[], [("1", shown, f"{times[HOLE - 1]:{written}}")]], (written, told)
