"""Text in the first unnamed column is no row number, and a value in another is a value without a name."""

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    path = bench.folder / "a.csv"
    path.write_text(",text,label,\n0,a film,x,\nseven,a play,y,\n2,a song,x,!\n")
    found = rows.read([path], registry.build())
    assert [dict(row.values) for row in found.rows] == [{"text": "a film", "label": "x"}]
    assert [str(problem) for problem in found.problems] == [
        f"{path}:3: found 'seven' in column 1, which has no name: give it one in the header line",
        f"{path}:4: found '!' in column 4, which has no name: give it one in the header line",
    ]
