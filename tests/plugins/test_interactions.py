"""The format `interactions`: columns, order, places, and what it says of lines that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool_recsys.interactions import Interactions

FORMAT = Interactions()


def read(tmp_path: Path, text: str, name: str = "log.inter", **options):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(FORMAT.read(path, FORMAT.Options(**options)))


def test_recbole_s_log_is_grouped_and_ordered_by_time(tmp_path):
    text = "user_id:token\titem_id:token\ttimestamp:float\n1\ta\t30\n2\tb\t5\n1\tc d\t10\n1\te\t30\n"
    assert read(tmp_path, text) == [
        Row({"user": "1", "items": ["c d", "a", "e"], "timestamps": [10.0, 30.0, 30.0]}, f"{tmp_path}/log.inter", 2),
        Row({"user": "2", "items": ["b"], "timestamps": [5.0]}, f"{tmp_path}/log.inter", 3),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.data", "196\t242\t3\t881250949\n196\t302\t4\t881250948\n"),
        ("ratings.dat", "196::242::3::881250949\n196::302::4::881250948\n"),
    ],
)
def test_movielens_files_have_no_header_line(tmp_path, name, text):
    (row,) = read(tmp_path, text, name)
    assert row.values["items"] == ["302", "242"] and row.values["ratings"] == [4.0, 3.0] and row.line == 1
    assert FORMAT.sniff(tmp_path / name) is not None


def test_csv_is_read_on_request_with_columns_by_name(tmp_path):
    text = 'who,what,day\nann,"tea, green",2024-03-01\nann,milk,2024-02-01\n'
    columns = {"user_column": "who", "item_column": "what", "timestamp_column": "day"}
    (row,) = read(tmp_path, text, "log.csv", **columns)
    assert row.values["items"] == ["milk", "tea, green"]
    assert FORMAT.sniff(tmp_path / "log.csv") is None
    with pytest.raises(DataError, match=r"log.csv:1: found columns 'who', 'what', 'day', expected one of user_id"):
        read(tmp_path, text, "log.csv")
    with pytest.raises(DataError, match=r"expected 'buyer' .*format_options.user_column=COLUMN"):
        read(tmp_path, text, "log.csv", **{**columns, "user_column": "buyer"})


def test_low_ratings_are_left_out(tmp_path):
    text = "user\titem\trating\n1\ta\t5\n1\tb\t2\n2\tc\t1\n"
    (row,) = read(tmp_path, text, min_rating=4)
    assert row.values == {"user": "1", "items": ["a"], "ratings": [5.0]}
    with pytest.raises(DataError, match="min_rating needs a column with ratings"):
        read(tmp_path, "user\titem\n1\ta\n", min_rating=4)


def test_without_times_the_lines_order(tmp_path):
    (row,) = read(tmp_path, "user\titem\n1\tb\n1\ta\n")
    assert row.values == {"user": "1", "items": ["b", "a"]}


def test_every_bad_line_is_named(tmp_path):
    text = "user\titem\trating\ttime\n1\ta\t5\t1\n1\ta\n\t\t5\t1\n2\tb\tgood\t1\n2\tb\t5\tsoon\n"
    row, *problems = read(tmp_path, text)
    assert isinstance(row, Row)
    assert [str(p).partition("log.inter:")[2] for p in problems if isinstance(p, DataProblem)] == [
        "3: found 2 values, expected 4",
        "4: found no user, expected one in every line",
        "5: found rating 'good', expected a number",
        "6: found time 'soon', expected a number or an ISO date such as 2024-12-31 or 2024-12-31T23:59: convert it",
    ]


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "log.inter"
    path.write_bytes(b"user\titem\n1\ta\n1\t\xff\n")
    row, problem = FORMAT.read(path, FORMAT.Options())
    assert row.values["items"] == ["a"] and str(problem).startswith(f"{path}:3: found byte 0xff")


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=5).filter(lambda t: '"' not in t)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, names, st.integers(0, 10**9)), min_size=1, max_size=30))
def test_no_interaction_is_lost_and_time_never_runs_back(tmp_path_factory, log):
    text = "user_id\titem_id\ttimestamp\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in log)
    rows = read(tmp_path_factory.mktemp("log"), text)
    found = [(row.values["user"], item) for row in rows for item in row.values["items"]]
    assert sorted(found) == sorted((u, i) for u, i, _ in log)
    assert all(row.values["timestamps"] == sorted(row.values["timestamps"]) for row in rows)
