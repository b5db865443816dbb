"""Formats: rows as they are written, on the lines they stand on; what cannot be read is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool_text.formats import formats

BY_NAME = {f.name: f for f in formats()}


def read(path: Path, content: bytes | str, **options: str) -> list[Row | DataProblem]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (chosen,) = claimants(path)
    return list(BY_NAME[chosen].read(path, BY_NAME[chosen].Options(**options)))


def claimants(path: Path) -> list[str]:
    """Formats that recognise a file: the general ones only where no narrower one does."""
    found = [name for name, f in BY_NAME.items() if f.sniff(path)]
    return [name for name in found if not BY_NAME[name].general] or found


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
        (b'{"x": 1e999}', "'1e999' is beyond float64"),
        (b'{"x": ' + b"9" * 5000 + b"}", "an integer of 5000 digits is too long"),
        (b'{"x": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"x": 1} {"x": 2}', "Extra data"),
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
    spread = read(tmp_path / "s.json", '\n[\n{"a":\n1}\n,{"a": NaN}, {"a": 2},\n\n{"a": "[]"}\n]\n')
    assert [(r.line, isinstance(r, Row)) for r in spread] == [(1, True), (2, False), (3, True), (4, True)]
    compact = read(tmp_path / "o.json", '[{"a": 1}, {"a": 2}]')
    assert [r.line for r in compact] == [1, 2], "one line, and yet each row has a place of its own"
    assert values(read(tmp_path / "e.json", "[ ]\n")) == values(read(tmp_path / "f.json", " ")) == []
    assert values(read(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"c\.json:2: .*expected a list of JSON objects"):
        read(tmp_path / "c.json", '[{"a": 1},\n oops]')


@pytest.mark.parametrize("content", ['[{"a": 1},]', '[{"a": 1}', '[{"a": 1}] 2', '[{"a": 1} {"a": 2}]'])
def test_a_broken_json_list_is_an_error_after_its_rows(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.json:1: .*expected a list of JSON objects"):
        read(tmp_path / "a.json", content)


def test_json_by_its_shape_and_not_only_its_suffix(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.jsonl", '[\n{"a": 1},\n{"a": 2}]\n')) == [{"a": 1}, {"a": 2}]
    pretty = read(tmp_path / "a.json", '{\n "a": 1\n}\n{\n "a": 2\n}\n')
    assert values(pretty) == [{"a": 1}, {"a": 2}] and [r.line for r in pretty] == [1, 2]


def test_numbers_and_escapes_stay_as_they_are_written(tmp_path: Path) -> None:
    text = '{"n": 123456789012345678901234567890, "e": "\\ud83d\\ude00", "f": 0.1}\n{"n": "01", "d": "2024-01-02"}\n'
    assert values(read(tmp_path / "a.jsonl", text)) == [
        {"n": 123456789012345678901234567890, "e": "\U0001f600", "f": 0.1},
        {"n": "01", "d": "2024-01-02"},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('{"text": "a"}\n'.encode("utf-16"))
    for chosen in BY_NAME.values():
        if chosen.name != "parquet" and chosen.sniff(tmp_path / name):
            with pytest.raises(DataError, match="is UTF-16 text, expected UTF-8"):
                list(chosen.read(tmp_path / name, chosen.Options()))
            break
    else:
        pytest.fail("no format recognises the file")


def test_csv_values_stay_text_and_records_may_span_lines(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", 'text,label\r\n"one\ntwo",01\r\n\r\nNA,1e5\r\n')
    assert values(records) == [{"text": "one\ntwo", "label": "01"}, {"text": "NA", "label": "1e5"}]
    assert [r.line for r in records] == [2, 5]


def test_ragged_csv_rows_and_bad_bytes_are_named(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", b"text,label\na,1,2\nb,1\n\xff,3\n")
    problems = [str(r) for r in records if isinstance(r, DataProblem)]
    path = tmp_path / "a.csv"
    assert f"{path}:2: found 3 values, expected 2 (text, label)" in problems
    assert any(p.startswith(f"{path}:4: found byte 0xff at position 1, expected UTF-8 text; it is") for p in problems)
    assert [r.values["text"] for r in records if isinstance(r, Row)] == ["b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,a\n1,2\n", "1: column 'a' occurs twice"),
        (b'a,b\n1,2\n"1,2\n3,4\n', "3: found a quote .* never closed, expected one before line 4 ends"),
        (b"a\xff,b\n1,2\n", "1: found byte 0xff"),
        (b'"a"b,c\n1,2\n', "1: found a malformed record"),
    ],
)
def test_a_csv_that_cannot_be_read_names_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv:{message}"):
        read(tmp_path / "a.csv", content)


def test_a_malformed_csv_record_costs_only_itself(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", 'text,label\n"a\n"b,1\nc,2\n')
    assert [type(r) for r in records] == [DataProblem, Row]
    assert str(records[0]).startswith(f"{tmp_path / 'a.csv'}:2: found a malformed record")
    assert "lines 2 to 3" in str(records[0]) and records[1].line == 4


def test_a_csv_record_with_bad_bytes_is_no_row(tmp_path: Path) -> None:
    problem, row = read(tmp_path / "a.csv", b'text,label\n"a\nb\xff\nc",1\nd,2\n')
    assert isinstance(problem, DataProblem) and problem.line == 3
    assert isinstance(row, Row) and (row.values["text"], row.line) == ("d", 5)


def test_a_long_csv_field_is_read_whole(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",1\n")
    assert isinstance(row, Row) and len(row.values["text"]) == 200_000


def test_a_csv_header_may_follow_blank_lines(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "a.csv", "\n\ntext,label\na,1\n")
    assert isinstance(row, Row) and (dict(row.values), row.line) == ({"text": "a", "label": "1"}, 4)


def test_tsv_and_other_delimiters(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.tsv", "a\tb\n1, 2\t3\n")) == [{"a": "1, 2", "b": "3"}]
    assert values(read(tmp_path / "a.csv", "a;b,\n1,5;2\n", delimiter=";")) == [{"a": "1,5", "b,": "2"}]
    assert values(read(tmp_path / "a.csv", '"a, c, d";b;e\n1,5;2;3\n')) == [{"a, c, d": "1,5", "b": "2", "e": "3"}]
    assert BY_NAME["csv"].sniff(tmp_path / "a.csv") == "suffix .csv, semicolons between columns"
    assert values(read(tmp_path / "a.csv", "text\n1;2\n")) == [{"text": "1;2"}]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_quotation_marks_between_tabs_are_text(tmp_path: Path, name: str) -> None:
    texts = ['"Great" film', '"Great', 'a 6" nail', 'ends"', '"']
    records = read(tmp_path / name, "text\tlabel\r\n" + "".join(f"{text}\t1\r\n" for text in texts))
    assert values(records) == [{"text": text, "label": "1"} for text in texts]
    assert [r.line for r in records] == [2, 3, 4, 5, 6]
    assert str(BY_NAME["csv"].sniff(tmp_path / name)).endswith(", tabs between columns, quotation marks are text")


def test_quotes_between_tabs_are_read_where_they_are_declared(tmp_path: Path) -> None:
    content = 'text\tlabel\n"a\tb ""c"""\t1\n'
    assert values(read(tmp_path / "a.tsv", content, quote="double")) == [{"text": 'a\tb "c"', "label": "1"}]
    every = '"text"\t"label"\n"a ""b"""\t"1"\n'  # as R writes them
    assert values(read(tmp_path / "a.tsv", every)) == [{"text": 'a "b"', "label": "1"}]
    assert BY_NAME["csv"].sniff(tmp_path / "a.tsv") == "suffix .tsv, tabs between columns"
    lines = 'text\tlabel\n"a\t1\nb"\t2\nc\t3\n'
    problem, row = read(tmp_path / "a.tsv", lines, quote="double")
    assert "a.tsv:2: found a quoted value over lines 2 to 3" in str(problem)
    assert values([row]) == [{"text": "c", "label": "3"}]


def test_quotes_of_commas_can_be_others_or_none(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.csv", "a,b\n'1,2',3\n", quote="single")) == [{"a": "1,2", "b": "3"}]
    assert values(read(tmp_path / "a.csv", 'a,b\n"1,2\n', quote="none")) == [{"a": '"1', "b": "2"}]


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
        ("file", [("a\nb\n\nc\n\n\nd", 1)]),
    ],
)
def test_text_is_split_as_asked(tmp_path: Path, split: str, expected: list[tuple[str, int]]) -> None:
    records = read(tmp_path / "a.txt", "a\nb\n\nc\n\n\nd\n", split=split)
    assert [(r.values["text"], r.line) for r in records if isinstance(r, Row)] == expected


def test_paragraphs_have_their_lines_however_far_apart(tmp_path: Path) -> None:
    records = read(tmp_path / "a.txt", b"\xef\xbb\xbf\r\na\r\n  b\r\n \t\r\n\r\n\r\n\r\n  c\x0cd\xe2\x80\xa8e\r\n")
    assert values(records) == [{"text": "a\n  b"}, {"text": "  c\x0cd\u2028e"}]
    assert [r.line for r in records] == [2, 8]


def test_a_paragraph_with_bad_bytes_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    first, problem, last = read(tmp_path / "a.txt", b"a\r\nb\r\n\r\nc\nd\xff\n\ne\n")
    assert isinstance(first, Row) and first.values == {"text": "a\nb"}
    assert isinstance(problem, DataProblem) and problem.line == 5 and "found byte 0xff at position 2" in str(problem)
    assert isinstance(last, Row) and (last.values["text"], last.line) == ("e", 7)


@pytest.mark.parametrize("name", ["data [1].txt", "data*.txt", "data?.txt"])
def test_a_file_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "data 1.txt").write_text("another file")
    assert values(read(tmp_path / name, "this file")) == [{"text": "this file"}]


def parquet(path: Path, table: Any) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)
    return path


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    """Same name, size and time, other rows: a cache that is keyed by them would give the old ones."""
    import pyarrow

    before = parquet(tmp_path / "a.parquet", pyarrow.table({"a": [1, 2, None]}))
    times = before.stat().st_atime_ns, before.stat().st_mtime_ns
    first = list(BY_NAME["parquet"].read(before, BY_NAME["parquet"].Options()))
    after = parquet(tmp_path / "a.parquet", pyarrow.table({"a": [3, 4, None]}))
    os.utime(after, ns=times)
    second = list(BY_NAME["parquet"].read(after, BY_NAME["parquet"].Options()))
    assert values(first) == [{"a": 1}, {"a": 2}, {"a": None}]
    assert values(second) == [{"a": 3}, {"a": 4}, {"a": None}]


def test_reading_asks_nothing_of_the_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """`datasets.load_dataset` would: wherever it may go online, it asks s3.amazonaws.com about a file on this disk."""
    import pyarrow

    parquet(tmp_path / "a.parquet", pyarrow.table({"a": [1]}))
    (tmp_path / "a.txt").write_text("text")
    code = """
        import socket, sys
        from pathlib import Path
        asked = []
        def refuse(*arguments, **more):
            asked.append(arguments)
            raise OSError("no network here")
        socket.getaddrinfo = socket.socket.connect = refuse
        from pefttool_text.formats import Parquet, Text
        for format, name in ((Parquet(), "a.parquet"), (Text(), "a.txt")):
            rows = list(format.read(Path(sys.argv[1], name), format.Options()))
            assert len(rows) == 1, rows
        assert not asked, asked
    """
    cleared = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
    online = {k: v for k, v in os.environ.items() if k not in cleared}
    places = {"HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=online | places, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not any((tmp_path / "temporary").iterdir()) and not (tmp_path / "home" / "datasets").exists()


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
