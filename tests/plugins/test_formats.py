"""Formats: rows as they are written, on the lines they stand on; what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.errors import DataError
from pefttool.interfaces import DataProblem, Row
from pefttool_text.formats import formats

BY_NAME = {f.name: f for f in formats()}


def read(path: Path, content: bytes | str, **options: str) -> list[Row | DataProblem]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (chosen,) = (f for f in BY_NAME.values() if f.sniff(path))
    return list(chosen.read(path, chosen.Options(**options)))


def values(records: list[Row | DataProblem]) -> list[dict]:
    assert all(isinstance(r, Row) for r in records), records
    return [dict(r.values) for r in records]


def test_json_lines_keep_their_types_and_lines(tmp_path: Path) -> None:
    text = '\ufeff{"text": "2024-01-01", "n": 1}\r\n\n{"text": "b\u2028c", "list": [{"a": 1}, {"b": null}]}\n'
    records = read(tmp_path / "a.jsonl", text)
    assert values(records) == [{"text": "2024-01-01", "n": 1}, {"text": "b\u2028c", "list": [{"a": 1}, {"b": None}]}]
    assert [r.line for r in records] == [1, 3]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"text": "a"', "expected a JSON object"),
        (b"[1, 2]", "found '[1, 2]', expected a JSON object such as"),
        (b'"text"', "expected a JSON object"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"text": "\xff"}', "found byte 0xff at position 11, expected UTF-8"),
        (b"[" * 5000, "expected a JSON object"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, found: str) -> None:
    first, problem, last = read(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}')
    assert isinstance(first, Row) and isinstance(last, Row) and last.line == 3
    assert isinstance(problem, DataProblem) and problem.line == 2 and found in problem.message


def test_a_json_list_and_a_json_object(tmp_path: Path) -> None:
    records = read(tmp_path / "a.json", '[{"a": 1},\n 3,\n {"a": 2}]')
    assert [r.line for r in records] == [1, 2, 3]
    assert isinstance(records[1], DataProblem) and "found '3'" in records[1].message
    assert values(read(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"c\.json:2: .*expected a list of JSON objects"):
        read(tmp_path / "c.json", '[{"a": 1},\n oops]')


def test_csv_values_stay_text_and_records_may_span_lines(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", 'text,label\r\n"one\ntwo",01\r\n\r\nNA,1e5\r\n')
    assert values(records) == [{"text": "one\ntwo", "label": "01"}, {"text": "NA", "label": "1e5"}]
    assert [r.line for r in records] == [2, 5]


def test_ragged_csv_rows_and_bad_bytes_are_named(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", b"text,label\na,1,2\nb,1\n\xff,3\n")
    problems = [str(r) for r in records if isinstance(r, DataProblem)]
    path = tmp_path / "a.csv"
    assert f"{path}:2: found 3 values, expected 2 (text, label)" in problems
    assert f"{path}:4: found byte 0xff at position 1, expected UTF-8 text" in problems
    assert [r.values["text"] for r in records if isinstance(r, Row)] == ["b"]


@pytest.mark.parametrize(
    ("content", "message"), [("a,a\n1,2\n", "column 'a' occurs twice"), ('a,b\n"1,2\n', "expected ','-separated")]
)
def test_a_csv_that_cannot_be_read_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv:\d+: .*{message}"):
        read(tmp_path / "a.csv", content)


def test_tsv_and_other_delimiters(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.tsv", "a\tb\n1, 2\t3\n")) == [{"a": "1, 2", "b": "3"}]
    assert values(read(tmp_path / "a.csv", "a;b\n1;2\n", delimiter=";")) == [{"a": "1", "b": "2"}]


def test_parquet_rows_look_as_they_were_written(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "b", "name": "x"}]},
    ]
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "p" / "a.parquet")
    content = (tmp_path / "p" / "a.parquet").read_bytes()
    records = read(tmp_path / "a.parquet", content)
    assert values(records) == rows
    assert [r.line for r in records] == [1, 2]
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet"):
        read(tmp_path / "b.parquet", content[: len(content) // 2])


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("paragraph", [("a\nb", 1), ("c", 4), ("d", 7)]),
        ("line", [("a", 1), ("b", 2), ("c", 4), ("d", 7)]),
        ("document", [("a\nb\n\nc\n\n\nd", 1)]),
    ],
)
def test_text_is_split_as_asked(tmp_path: Path, split: str, expected: list[tuple[str, int]]) -> None:
    records = read(tmp_path / "a.txt", "a\nb\n\nc\n\n\nd\n", split=split)
    assert [(r.values["text"], r.line) for r in records if isinstance(r, Row)] == expected


def test_no_file_belongs_to_two_formats(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": b"{}",
        "b.json": b"[]",
        "c.json": b"{}",
        "d.csv": b"a",
        "e.txt": b"x",
        "f.parquet": b"PAR1",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert len([f.name for f in BY_NAME.values() if f.sniff(tmp_path / name)]) == 1, name


@settings(max_examples=60)
@given(name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"]), content=st.binary(max_size=80))
def test_junk_is_answered_not_raised(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / name
    path.write_bytes(content)
    for chosen in BY_NAME.values():
        if chosen.sniff(path):
            try:
                assert all(isinstance(r, Row | DataProblem) for r in chosen.read(path, chosen.Options()))
            except DataError as error:
                assert str(path) in str(error)


@given(
    st.lists(
        st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.none(), max_size=3), max_size=6
    )
)
def test_what_json_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert values(read(path, written)) == rows
