"""Rows of two machines, beside those that Python's csv module groups."""

import csv
from collections import defaultdict

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows

TABLE = "machine,timestamp,power_w,fault\n" + "".join(
    f"M{m:03d},2024-01-01T{hour:02d}:00,{m + hour / 10},{m % 2}\n" for hour in range(9) for m in range(4)
)


def check(bench: Bench) -> None:
    path = bench.folder / "sensors.csv"
    path.write_text(TABLE)
    right = defaultdict(list)
    for record in csv.DictReader(TABLE.splitlines()):
        right[record["machine"]].append((float(record["power_w"]), record["timestamp"], record["fault"]))
    found = rows.read([path], registry.build(), "series-long", {"label_column": "fault"})
    assert not found.problems
    assert {row.values["id"]: (row.values["series"], row.values["timestamps"]) for row in found.rows} == {
        name: ([[power for power, _, _ in moments]], [time for _, time, _ in moments])
        for name, moments in right.items()
    }
    assert [row.values["label"] for row in found.rows] == [moments[0][2] for moments in right.values()]
    asked = ("--task", "series-classification", "--format", "series-long")
    answer = bench.pefttool("data", "check", path, *asked)
    assert answer.code == 1
    assert "found no class, and the channels power_w, fault: name the column of the class with" in answer.text, (
        answer.text
    )
    assert "-o data.format_options.label_column=COLUMN" in answer.text
