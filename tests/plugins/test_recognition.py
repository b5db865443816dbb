"""A task is recognised though a few rows of the sample are wrong; those are told with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner, Result
from PIL import Image

from pefttool.cli.group import cli


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def check(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)])


def _turns(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "answer"}]


def _answered(i: int, answer: str = "Ada") -> dict[str, Any]:
    return {"question": f"who {i}?", "context": "Ada came.", "answers": {"text": [answer], "answer_start": [0]}}


#: By task: a good row for each number, and rows that are none, with what is said of them.
ODD: list[tuple[str, Any, Any, str]] = [
    (
        "token-classification",
        lambda i: {"tokens": ["Ada", f"w{i}"], "tags": ["B-name", "O"]},
        {"tokens": ["Ada", "x"], "tags": ["B-name"]},
        "column 'tags': found 1 tags, expected 2",
    ),
    ("question-answering", _answered, {**_answered(0), "context": None}, "column 'context': found None"),
    ("question-answering", _answered, {**_answered(0), "answers": "Ada"}, "found 'Ada'"),
    (
        "preference",
        lambda i: {"prompt": f"question {i}", "chosen": "good", "rejected": "bad"},
        {"prompt": "question", "chosen": "same", "rejected": "same"},
        "found the same answer twice",
    ),
    ("chat", lambda i: {"messages": _turns(i)}, {"messages": []}, "column 'messages': found []"),
    ("chat", lambda i: {"messages": _turns(i)}, {"messages": "hello"}, "column 'messages': found 'hello'"),
    ("chat", lambda i: {"conversations": _turns(i)}, {"messages": None}, "column 'messages': found None"),
    (
        "seq2seq",
        lambda i: {"source": f"text {i}", "target": f"otro {i}"},
        {"source": "text", "target": 3},
        "column 'target': found 3",
    ),
    (
        "image-classification",
        lambda i: {"image": f"{i}.png", "label": "cat" if i % 2 else "dog"},
        {"image": "1.png", "label": None},
        "column 'label': found None",
    ),
    (
        "object-detection",
        lambda i: {"image": f"{i}.png", "objects": [{"bbox": [1, 2, 3, 4], "category": "cat"}] if i % 3 else []},
        {"image": "1.png", "objects": "cat"},
        "found 'cat', expected {\"bbox\"",
    ),
    ("next-item", lambda i: {"user": i, "items": ["a", "b", f"c{i}"]}, {"user": 9, "items": "a"}, "found 'a'"),
    (
        "series-classification",
        lambda i: {"series": [[1.0, 2.0, float(i)]], "label": "up" if i % 2 else "down"},
        {"series": [["x"]], "label": "up"},
        "column 'series'",
    ),
    ("series-forecasting", lambda i: {"series": [[float(i)] * 90]}, {"series": "none"}, "column 'series'"),
    (
        "tabular-classification",
        lambda i: {"age": i, "height": i / 7, "label": "a" if i % 2 else "b"},
        {"age": [1], "height": 2, "label": "a"},
        "column 'age': found [1]",
    ),
    (
        "speech-recognition",
        lambda i: {"audio": f"{i}.wav", "text": f"words {i}"},
        {"audio": None, "text": "words"},
        "column 'audio': found None",
    ),
    (
        "text-classification",
        lambda i: {"text": f"film {i}", "label": "bad" if i % 3 else "good"},
        {"text": 7, "label": "bad"},
        "column 'text': found 7",
    ),
]


@pytest.mark.parametrize(("task", "good", "odd", "said"), ODD, ids=[f"{row[0]}-{i}" for i, row in enumerate(ODD)])
def test_one_bad_row_among_the_first_is_told_with_its_line(
    tmp_path: Path, task: str, good: Any, odd: Any, said: str
) -> None:
    rows = [good(i) for i in range(24)]
    for row in rows:
        if "image" in row:
            Image.new("RGB", (8, 8)).save(tmp_path / row["image"])
        if "audio" in row:
            soundfile.write(tmp_path / row["audio"], [0.0] * 1600, 16000)
    path = write(tmp_path / "rows.jsonl", [*rows[:3], odd, *rows[3:]])
    result = check(path)
    assert f"task {task}, recognised from the data" in result.output, result.exception
    assert "in 19 of the first 20 rows" in result.output
    assert any(line.startswith(f"{path}:4: ") and said in line for line in result.output.splitlines()), result.output
    assert result.exit_code == 1 and "1 rows cannot be used" in result.output


CHAT = [{"messages": _turns(i)} for i in range(10)]
TAGGED = [{"tokens": ["a"], "tags": ["O"]}] * 10


@pytest.mark.parametrize(
    "rows",
    [
        [*CHAT, *TAGGED],  # half and half
        [*CHAT, *TAGGED[:6]],  # 10 of 16
        [{"text": "one", "label": {}}, {"text": "two", "label": "a"}],
        # A class on one line, among texts that would all be learnt as plain text, without a word about it.
        [{"text": f"line {i}"} if i else {"text": "first", "label": "a"} for i in range(20)],
        [{"series": [[1.0] * 90]} if i else {"series": [[1.0] * 90], "label": "a"} for i in range(20)],
    ],
)
def test_without_a_clear_majority_nothing_is_recognised(tmp_path: Path, rows: list[Any]) -> None:
    result = check(write(tmp_path / "rows.jsonl", rows))
    assert "no task recognises it" in str(result.exception) and result.exit_code != 0


def test_what_some_rows_look_like_is_said(tmp_path: Path) -> None:
    said = str(check(write(tmp_path / "rows.jsonl", [*CHAT, *TAGGED[:6]])).exception)
    assert "(of the first 16 rows by themselves: chat 10, token-classification 6); say --task NAME" in said


def test_two_tasks_that_recognise_most_rows_are_an_error_still(tmp_path: Path) -> None:
    both = {"messages": _turns(1), "tokens": ["a"], "tags": ["O"]}
    result = check(write(tmp_path / "rows.jsonl", [both] * 19 + [{"tokens": 3, "messages": 3}]))
    assert "no task recognises it" in str(result.exception)


def _pictures(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i * 9, 0, 0)).save(folder / name)


CLASSES = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]
AS_PICTURES = ("--task", "image-classification"), ("--format", "images")


@pytest.mark.parametrize(
    ("stray", "content"),
    [
        ("labels.txt", "cat\n\ndog\n"),
        ("meta.json", '{"about": "pets"}'),
        ("Thumbs.db", "?"),
        ("labels.csv", "number,name\n0,cat\n1,dog\n"),
    ],
)
def test_a_stray_file_does_not_hide_folders_of_pictures(tmp_path: Path, stray: str, content: str) -> None:
    _pictures(tmp_path, *CLASSES)
    (tmp_path / stray).write_text(content)
    for asked in AS_PICTURES:
        result = check(tmp_path, *asked)
        assert "12 rows: 10 to train on, 2 held out" in result.output and result.exit_code == 0, result.exception
        assert f"{tmp_path / stray}: left out" in result.output
    result = check(tmp_path)
    if stray == "labels.txt":  # prose, or pictures?
        assert "more than one task recognises it: causal-lm, image-classification" in str(result.exception)
    else:
        assert "task image-classification" in result.output and "2 held out" in result.output, result.exception


def test_pictures_that_no_row_names_are_counted(tmp_path: Path) -> None:
    _pictures(tmp_path, *CLASSES)
    rows = [{"image": name, "label": name[:3]} for name in CLASSES[1:-1]]
    write(tmp_path / "rows.jsonl", rows)
    for asked in ((), ("--task", "image-classification")):
        result = check(tmp_path, *asked)
        assert "10 rows: 8 to train on, 2 held out" in result.output, result.exception
        assert "cat/0.png and 1 more: left out, as no row names them (-o data.format=images" in result.output
    write(tmp_path / "rows.jsonl", [{"image": name, "label": name[:3]} for name in CLASSES])
    assert "left out" not in check(tmp_path).output


def test_a_picture_beside_prose_illustrates_it(tmp_path: Path) -> None:
    _pictures(tmp_path, "img/a.png", "img/b.png")
    (tmp_path / "book.txt").write_text("".join(f"A paragraph, number {i}.\n\n" for i in range(9)))
    result = check(tmp_path)
    assert "task causal-lm" in result.output and "img/a.png and 1 more: left out, as no row names them" in result.output


def test_a_table_whose_pictures_are_gone_is_not_given_up_for_others(tmp_path: Path) -> None:
    """Their folders would be taken for classes, and those of the table would be lost."""
    _pictures(tmp_path, *CLASSES)
    write(tmp_path / "rows.jsonl", [{"image": f"gone/{i}.png", "label": "a"} for i in range(9)])
    result = check(tmp_path, "--task", "image-classification")
    assert "9 rows cannot be used" in result.output and "rows.jsonl:9:" in result.output


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("user,item,timestamp\nu0,i0,0\nu0,i1,10\n", ["-o data.format=interactions (next-item)"]),
        ("id,time,a,b\nm,0,0.1,0\nm,1,0.2,1\n", ["-o data.format=series-long (series-forecasting)"]),
        ("note,word\nx,y\n", []),
    ],
)
def test_a_table_that_another_format_reads_is_told_which(tmp_path: Path, text: str, hints: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    said = str(check(path).exception)
    assert "no task recognises it" in said and all(hint in said for hint in hints), said
    assert ("read it with" in said) == bool(hints)


def test_classes_of_one_row_each_are_no_riddle(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i} for i in range(20)]
    said = check(write(tmp_path / "rows.jsonl", rows)).output
    assert "each is the only row of its class, '0', '1'" in said and "`pefttool tasks show TASK` names them" in said
    assert "0 to train on" not in said and "20 rows" in said


def test_classes_that_differ_in_spaces_or_capitals_are_a_warning(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": ["a", " a", "b", "c", "B"][i % 5]} for i in range(50)]
    result = check(write(tmp_path / "rows.jsonl", rows))
    assert "warning: classes ' a' and 'a' and 1 more differ in spaces or capitals alone" in result.output
    assert "5 classes in the training rows" in result.output and result.exit_code == 0
    plain = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(50)]
    assert "warning" not in check(write(tmp_path / "rows.jsonl", plain)).output


def test_a_broken_table_is_not_given_up_for_the_pictures_beside_it(tmp_path: Path) -> None:
    _pictures(tmp_path, *CLASSES)
    (tmp_path / "labels.csv").write_text('image,label\n"cat/0.png,cat\n')
    for asked in ((), ("--task", "image-classification")):
        assert 'a quote (") that is never closed' in str(check(tmp_path, *asked).exception)
    assert "12 rows" in check(tmp_path, "--format", "images").output
