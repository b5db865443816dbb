"""The rows of a file whose first line is `sep=;` are those below its header."""

import csv

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    lines = bench.input().read_text(encoding="utf-8-sig").splitlines()
    right = list(csv.DictReader(lines[1:], delimiter=";"))
    found = rows.read([bench.input()], registry.build())
    assert [dict(row.values) for row in found.rows] == right and not found.problems
    assert [row.line for row in found.rows] == list(range(3, 3 + len(right)))
    assert "semicolons between columns" in found.formats[0]
