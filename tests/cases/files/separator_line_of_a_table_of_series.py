"""series-long, series-wide and interactions have readers of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    path = bench.folder / "a.csv"
    path.write_text("sep=|\n|time|x|y|\n0|0|1|4|\n1|1|2|5|\n2|2|3|6|\n")
    assert _read(path, "series-long")["series"] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    path.write_text("sep=|\n|t1|t2\n0|1|4\n")
    assert _read(path, "series-wide")["series"] == [[1.0, 4.0]]
    path.write_text("sep=;\nuser;item\nu;a\nu;b\n")
    assert _read(path, "interactions")["items"] == ["a", "b"]


def _read(path: Path, format_name: str) -> Mapping[str, Any]:
    found = rows.read([path], registry.build(), format_name)
    assert not found.problems
    (row,) = found.rows
    return row.values
