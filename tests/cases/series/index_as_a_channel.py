"""The columns of a file that pandas wrote with its index."""

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    path = bench.folder / "a.csv"
    path.write_text(",time,power\n0,1,5\n1,2,6\n")
    (row,) = rows.read([path], registry.build(), "series-long").rows
    assert row.values["channels"] == ["power"] and row.values["series"] == [[5.0, 6.0]]
    path.write_text(",t1,t2\n0,1,5\n1,2,6\n")
    found = rows.read([path], registry.build(), "series-wide").rows
    assert [row.values["series"] for row in found] == [[[1.0, 5.0]], [[2.0, 6.0]]]
