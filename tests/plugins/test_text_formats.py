"""CoNLL columns and SQuAD's JSON: rows, their places, and what is wrong with a file."""

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


def test_columns_of_words_and_tags(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\nEU NNP B-org\r\nrejects  VBZ O\n \n\nPeter NNP B-person\n"
    records = read(tmp_path / "a.bio", text)
    assert values(records) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-org", "O"]},
        {"tokens": ["Peter"], "tags": ["B-person"]},
    ]
    assert [r.line for r in records] == [3, 7]
    # Between tabs a word may hold spaces; a line with nothing but a tab is blank.
    (one, two) = values(read(tmp_path / "b.conll", "New York\tB-place\n\t\nand\tO"))
    assert one == {"tokens": ["New York"], "tags": ["B-place"]} and two["tokens"] == ["and"]


@pytest.mark.parametrize(
    ("lines", "line", "found"),
    [
        ("a X O\nb O\nc X O", 2, "found 2 columns ('b O'), expected 3 as on the lines before"),
        ("a\nb", 1, "found 1 columns ('a'), expected a word and its tag"),
        ("a\tO\n\tO", 2, "found an empty column"),
        ("a\tO\nb \xff\tO".encode("latin-1"), 2, "found byte 0xff at position 3"),
    ],
)
def test_a_ragged_line_is_named_and_other_sentences_are_read(
    tmp_path: Path, lines: str | bytes, line: int, found: str
) -> None:
    content = lines if isinstance(lines, bytes) else lines.encode()
    first, last = read(tmp_path / "a.conll", content + b"\n\nlast " + (b"X O" if b"X" in content else b"O"))
    assert isinstance(first, DataProblem) and first.line == line and found in first.message
    assert isinstance(last, Row) or content == b"a\nb"


def test_a_text_file_of_words_and_tags_is_no_prose(tmp_path: Path) -> None:
    tagged, prose, listed = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    tagged.write_text("EU B-org\nrejects O\nit O\n\n" * 400)
    prose.write_text("Vitamin B-12\nhelps O\n\nand so on O\n")
    listed.write_text("one O\ntwo O\nthree O\n")
    sniffed = {p.name: claimants(p) for p in (tagged, prose, listed)}
    assert sniffed == {"a.txt": ["conll"], "b.txt": ["text"], "c.txt": ["text"]}


WORD = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=5).filter(
    lambda word: word != "-DOCSTART-"
)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), min_size=1, max_size=4), st.sampled_from("\t ")
)
def test_columns_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[tuple[str, str]]], between: str
) -> None:
    path = tmp_path_factory.mktemp("columns") / "a.conll"
    path.write_text("\n\n".join("\n".join(between.join(pair) for pair in s) for s in sentences), encoding="utf-8")
    found = values(list(BY_NAME["conll"].read(path, None)))
    assert found == [{"tokens": [w for w, _ in s], "tags": [t for _, t in s]} for s in sentences]


def squad(*questions: object, **more: object) -> str:
    paragraph = {"context": "Ada came.", "qas": list(questions), **more}
    return json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}], "version": "1.1"})


def test_squad_and_json_leave_each_others_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, name in (
        (squad({"id": "q", "question": "Who?", "answers": []}), "squad"),
        (json.dumps(json.loads(squad()), indent=2), "squad"),
        ('{"version": "2.0", "data": [{"paragraphs": []}]}', "squad"),
        ('[{"data": [{"paragraphs": []}]}]', "json"),
        ('{"data": [1, 2], "paragraphs": []}\n', "jsonl"),
        ('{"data": [{"x": 1}], "n": 1}\n', "jsonl"),
        ('{"text": "\\"data\\": [{", "paragraphs": []}', "jsonl"),
    ):
        path.write_text(text)
        assert claimants(path) == [name], text


@pytest.mark.parametrize(
    ("question", "found"),
    [
        (
            {"id": "q7", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 1}]},
            "item 'q7': answer_start 1 of 'Ada' does not match: the context has 'da ' there",
        ),
        ({"id": "q7", "question": "Who?", "answers": [{"text": "Ada"}]}, "item 'q7': found {'text': 'Ada'}"),
        ({"id": "q7", "question": "Who?", "answers": "Ada"}, "item 'q7': 'answers' is 'Ada'"),
        ({"id": "q7", "answers": []}, "item 'q7': 'question' is None, expected text"),
        ("Who?", "found 'Who?' as a question"),
    ],
)
def test_a_bad_item_is_named_by_its_id(tmp_path: Path, question: object, found: str) -> None:
    good = {"id": "ok", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    first, problem, last = read(tmp_path / "a.json", squad(good, question, good))
    assert isinstance(first, Row) and isinstance(last, Row) and (first.line, last.line) == (1, 3)
    assert isinstance(problem, DataProblem) and problem.line == 2 and found in problem.message


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ({"title": "t", "paragraphs": [{"context": "x"}]}, "article 2 ('t'), paragraph 1 has None as 'qas'"),
        ({"paragraphs": [{"context": "x", "qas": []}, "p"]}, "article 2, paragraph 2 has 'p' as 'qas'"),
        ({"title": "t"}, "article 2 ('t') has None as 'paragraphs'"),
        (7, "article 2 has 7 as 'paragraphs'"),
    ],
)
def test_a_broken_article_is_named_and_does_not_hide_the_others(tmp_path: Path, broken: object, found: str) -> None:
    good = {"id": "ok", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    whole = json.loads(squad(good))["data"]
    text = json.dumps({"data": [*whole, broken, *json.loads(squad(good, "?"))["data"]]})
    first, problem, second, other = read(tmp_path / "a.json", text)
    assert isinstance(first, Row) and isinstance(second, Row) and second.line == 2
    assert isinstance(problem, DataProblem) and problem.message == f"{found}, expected a list, as in SQuAD"
    assert isinstance(other, DataProblem) and other.line == 3


@pytest.mark.parametrize("text", ['{"data": {"paragraphs": []}}', squad() + "x", squad()[:-3]])
def test_a_file_that_is_not_squads_after_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        list(BY_NAME["squad"].read(path, None))
