"""The formats of series: what they read, and what they say of files that are no such thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError, Refused
from pefttool.api.values import DataProblem, Row
from pefttool.config import recipe as recipes
from pefttool.config import registry as registries
from pefttool.data import rows as reader
from pefttool_series.long_csv import SeriesLong
from pefttool_series.ts_file import Ts
from pefttool_series.wide_csv import SeriesWide

WIDE, LONG, TS = SeriesWide(), SeriesLong(), Ts()
TS_HEAD = "@problemName p\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"


def read(data_format: Any, path: Path, text: str, **options: Any) -> list[Row | DataProblem]:
    path.write_text(text, encoding="utf-8")
    return list(data_format.read(path, data_format.Options(**options)))


def values(records: list[Row | DataProblem]) -> list[Any]:
    return [dict(r.values) if isinstance(r, Row) else str(r).partition("/")[2].rpartition("/")[2] for r in records]


def test_wide_rows_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    text = "machine;v1;v2;kind\nm1;1,5;2;x\n"
    found = read(WIDE, tmp_path / "a.csv", text.replace("1,5", "1.5"), value_columns="v*", label_column="kind")
    assert values(found) == [{"series": [[1.5, 2.0]], "label": "x"}]
    kept = read(WIDE, tmp_path / "a.csv", "machine,v1,v2\nm1,1,?\n", other_columns=["machine"])
    assert values(kept) == [{"machine": "m1", "series": [[1.0]]}]
    ucr = read(WIDE, tmp_path / "a.tsv", "2\t0.5\t1\n1\t2\t-1\n", header=False, label_column="0")
    assert values(ucr) == [{"series": [[0.5, 1.0]], "label": "2"}, {"series": [[2.0, -1.0]], "label": "1"}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("t0,t1,label\n1,x,a\n", "a.csv:2: column 't1': found 'x', expected a number, or nothing where it is missing"),
        ("t0,t1\n1,2\n1\n", "a.csv:3: found 1 values, expected 2"),
        ("t0,t1\n1,inf\n", "a.csv:2: column 't1': found 'inf'"),
    ],
)
def test_wide_problems_have_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    assert values(read(WIDE, tmp_path / "a.csv", text))[-1].startswith(complaint)


def test_wide_files_without_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.csv:1: found columns 'id', 'label', expected some that match .*'\*'"):
        read(WIDE, tmp_path / "a.csv", "id,label\n1,a\n")
    with pytest.raises(DataError, match=r"a.csv:1: column 't' occurs twice"):
        read(WIDE, tmp_path / "a.csv", "t,t\n1,2\n")
    with pytest.raises(DataError, match=r"a.csv:2: found a quote \(\"\) that is never closed"):
        read(WIDE, tmp_path / "a.csv", 't0,t1\n"1,2\n')


def test_long_rows_may_be_mixed_and_need_no_id_or_time(tmp_path: Path) -> None:
    mixed = read(LONG, tmp_path / "a.csv", "unit,t,v\nx,1,1\ny,1,5\nx,2,2\n", id_column="unit", time_column="t")
    assert [r.values["series"] for r in mixed if isinstance(r, Row)] == [[[1.0, 2.0]], [[5.0]]]
    assert [r.line for r in mixed] == [2, 3]
    alone = read(LONG, tmp_path / "a.csv", "v,w\n1,2\n3,\n")
    assert values(alone) == [{"series": [[1.0, 3.0], [2.0, None]], "channels": ["v", "w"]}]
    chosen = read(LONG, tmp_path / "a.csv", "time,note,v\n2024-01-01,hm,1\n2024-01-02,,2\n", value_columns=["v"])
    assert values(chosen)[0]["timestamps"] == ["2024-01-01", "2024-01-02"]


@pytest.mark.parametrize(
    "times",
    [
        ["9", "10", "11.5"],
        ["2023-12-31", "2024-01-01", "2024-02-29"],
        ["2023-12", "2024-01", "2024-02"],
        ["2024-03-31 01:59:59", "2024-03-31T02:00", "2024-03-31T00:30-04:00"],
    ],
)
def test_times_are_compared_as_times(tmp_path: Path, times: list[str]) -> None:
    text = "time,v\n" + "".join(f"{time},{i}\n" for i, time in enumerate(times))
    (found,) = values(read(LONG, tmp_path / "a.csv", text))
    assert found == {"series": [[0, 1, 2]], "channels": ["v"], "timestamps": times}
    first, second, third = times
    back = list(read(LONG, tmp_path / "a.csv", f"time,v\n{first},1\n{third},2\n{second},3\n"))
    assert f"found time {second!r} after {third!r}, expected times that increase" in str(back[0])


@pytest.mark.parametrize("time", ["12/31/2023", "01.02.2022", "2024-02-30", "2024-13", "noon", "", "nan"])
def test_times_of_other_kinds_are_refused_with_a_way_out(tmp_path: Path, time: str) -> None:
    """As text `01/01/2023` comes before `01/02/2022`."""
    text = f"time,v\n{time},1\n"
    (problem, *_) = read(LONG, tmp_path / "a.csv", text)
    assert f"a.csv:2: found time {time!r}, expected a number or an ISO date such as 2024-12-31" in str(problem)
    assert "time_column: null, value_columns" in str(problem)
    lines = read(LONG, tmp_path / "a.csv", text + "x,2\n", time_column=None, value_columns=["v"])
    assert values(lines) == [{"series": [[1, 2]], "channels": ["v"]}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,time,v\na,2,1\na,1,2\n", "a.csv:3: found time '1' after '2', expected times that increase"),
        ("id,time,v\na,9,1\na,10,x\n", "a.csv:3: column 'v': found 'x', expected a number"),
        ("id,time,v,label\na,1,1,ok\na,2,1,bad\n", "a.csv:3: found class 'bad', expected 'ok' as in line 2"),
        ("id,time,v\na,1\n", "a.csv:2: found 2 values, expected 3 (id, time, v)"),
    ],
)
def test_long_problems_have_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    assert next(v for v in values(read(LONG, tmp_path / "a.csv", text)) if isinstance(v, str)).startswith(complaint)


def test_long_files_without_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.csv:1: found columns 'id', 'time', expected one with values"):
        read(LONG, tmp_path / "a.csv", "id,time\n1,1\n")
    with pytest.raises(DataError, match=r"a.csv:1: .* expected 'w': name others in data.format_options.value_columns"):
        read(LONG, tmp_path / "a.csv", "id,v\n1,1\n", value_columns=["w"])


def test_ts_files_with_time_stamps_and_targets(tmp_path: Path) -> None:
    stamped = "@timeStamps true\n@univariate true\n@classLabel true 1 2\n@data\n(2007-01-01 00:00:00,2.5),(b,?):1\n"
    assert values(read(TS, tmp_path / "a.ts", stamped)) == [{"series": [[2.5, None]], "label": "1"}]
    target = "@targetLabel true\n@univariate false\n@data\n1,2:3,4:0.25\n"
    assert values(read(TS, tmp_path / "a.ts", target)) == [{"series": [[1.0, 2.0], [3.0, 4.0]], "target": 0.25}]
    plain = "@classLabel false\n@data\n1,2\n"
    assert values(read(TS, tmp_path / "a.ts", plain)) == [{"series": [[1.0, 2.0]]}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TS_HEAD + "1,x:a\n", "a.ts:6: dimension 0: found 'x', expected numbers and commas"),
        (TS_HEAD + "1,2:c\n", "a.ts:6: found class 'c', expected one of those of @classLabel (a, b)"),
        (TS_HEAD + "1,2\n", "a.ts:6: found '1,2', expected values, a colon and the class"),
        (TS_HEAD + "1:2:a\n", "a.ts:6: found 2 dimensions, expected 1"),
        ("@equalLength true\n@seriesLength 3\n@data\n1,2\n", "a.ts:4: dimension 0: found 2 values, expected 3"),
    ],
)
def test_ts_problems_have_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    assert values(read(TS, tmp_path / "a.ts", text))[0].startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("const a: number = 1;\n", "a.ts:1: found 'const a: number = 1;', expected a line that starts with @"),
        ("@univariate true\n", "found no line @data"),
        ("@univariate perhaps\n@data\n", "a.ts:1: @univariate: found 'perhaps', expected true or false"),
        ("@dimensions many\n@data\n", "a.ts:1: @dimensions: found 'many', expected a number"),
    ],
)
def test_ts_files_that_are_none_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        read(TS, tmp_path / "a.ts", text)
    assert complaint in str(caught.value)


def test_typescript_is_no_series(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_text("// @data is no header here\nexport const x = 1;\n", encoding="utf-8")
    assert TS.sniff(path) is None


@given(
    st.lists(
        st.tuples(
            st.lists(st.none() | st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=6),
            st.sampled_from(["up", "down"]),
        ),
        max_size=5,
    )
)
@settings(deadline=None, max_examples=60)
def test_ts_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    body = "".join(",".join("?" if v is None else repr(v) for v in one) + f":{label}\n" for one, label in rows)
    path = tmp_path_factory.mktemp("ts") / "a.ts"
    found = read(TS, path, "@univariate true\n@classLabel true up down\n@data\n" + body)
    assert [(r.values["series"][0], r.values["label"]) for r in found if isinstance(r, Row)] == rows


def test_a_plain_csv_stays_csv_and_options_come_from_the_recipe(tmp_path: Path) -> None:
    registry = registries.build()
    path = tmp_path / "a.csv"
    path.write_text("unit,v\nx,1\nx,2\n", encoding="utf-8")
    assert reader.choose_format(path, registry)[0].name == "csv"
    given = {
        "model": "m",
        "adapter": "lora",
        "task": "series-forecasting",
        "data": {"train": str(path), "format": "series-long", "format_options": {"id_column": "unit"}},
    }
    recipe = recipes.resolve(given, registry)
    (row,) = reader.read([path], registry, recipe.data.format, recipe.data.format_options).rows
    assert row.values["series"] == [[1.0, 2.0]] and row.values["id"] == "x"
    for data, complaint in (
        ({"format": "series-long", "format_options": {"ids": "unit"}}, "data.format_options.ids: unknown key"),
        ({"format_options": {"id_column": "unit"}}, "options are given without data.format"),
        ({"format": "series-lon"}, "data.format: "),
    ):
        with pytest.raises(Refused) as caught:
            recipes.resolve({**given, "data": {"train": str(path), **data}}, registry)
        assert complaint in str(caught.value)
