"""`pefttool data check`: every wrong row with its place, what the rest is taken for, and no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pefttool.cli.group import cli

GOOD = [{"text": f"film {i}", "label": "bad" if i % 3 else "good"} for i in range(30)]
#: On lines 31 to 33.
WRONG = ['{"text": "", "label": "good"}', '{"text": "no class"}', "no JSON"]


def write(path: Path, rows: list[Any], *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, rows), *lines]), encoding="utf-8")
    return path


def check(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)])


def test_good_data_is_described(tmp_path: Path) -> None:
    result = check(write(tmp_path / "rows.jsonl", GOOD))
    assert result.exit_code == 0, result.output
    for part in (
        "task text-classification, recognised",
        "30 rows: 27 to train on, 3 held out",
        "2 classes in the training rows: bad 18, good 9",
        '{"text": "film ',
        "nothing is wrong with it",
    ):
        assert part in result.output


def test_every_wrong_row_is_named_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, *WRONG)
    result = check(path, "--task", "text-classification")
    assert result.exit_code == 1
    assert f"{path}:31: column 'text': found" in result.output
    assert f"{path}:32: " in result.output and f"{path}:33: found 'no JSON'" in result.output
    assert "3 rows cannot be used" in result.output and "nothing is wrong" not in result.output


def test_more_than_twenty_are_counted_and_shown_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, *["?"] * 25)
    shown = check(path, "--task", "text-classification").output
    assert shown.count("found '?'") == 20 and "and 5 more: --all shows them" in shown
    assert check(path, "--task", "text-classification", "--all").output.count("found '?'") == 25


def test_json_for_programs(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, *WRONG)
    result = check(path, "--task", "text-classification", "--json")
    found = json.loads(result.output)
    assert (found["read"], found["train"], found["eval"], found["good"]) == (30, 27, 3, False)
    assert [problem["line"] for problem in found["problems"]] == [31, 32, 33]
    assert found["classes"] == {"bad": 18, "good": 9} and result.exit_code == 1


def test_a_row_of_several_classes_counts_for_each(tmp_path: Path) -> None:
    """Not the combinations that the split keeps in proportion."""
    rows = [{"text": f"film {i}", "label": ["long", "sad"] if i % 2 else ["sad"]} for i in range(20)]
    result = check(write(tmp_path / "rows.jsonl", rows), "--task", "text-classification")
    assert "2 classes in the training rows: long 9, sad 18" in result.output
    tags = [["B-place", "I-place", "O"], ["O", "B-name", "B-place"]]
    rows = [{"tokens": ["ab", "cd", f"{i}"], "tags": tags[i % 2]} for i in range(20)]
    result = check(write(tmp_path / "words.jsonl", rows))
    assert "2 classes in the training rows: name 9, place 18" in result.output


def test_what_a_run_would_refuse_is_said(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", GOOD)
    held_out = write(tmp_path / "eval.jsonl", [{"text": "odd", "label": "other"}])
    result = check(train, "--eval-data", held_out)
    assert result.exit_code == 1 and "class 'other' is not among the training rows'" in result.output


def test_rows_on_both_sides_are_said_first(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", GOOD)
    new = [{"text": f"another {i}", "label": "bad"} for i in range(2)]
    held_out = write(tmp_path / "eval.jsonl", [*GOOD[:2], *new])
    result = check(train, "--eval-data", held_out)
    assert result.exit_code == 0
    assert "2 of 4 held-out rows are among the training rows too" in result.output.splitlines()[1]
    result = check(train, "--eval-data", write(tmp_path / "eval.jsonl", GOOD[:2]))
    assert result.exit_code == 1 and "data.eval: 2 of 2 held-out rows are among the training rows too" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.jsonl",), "no such file or folder"),
        (("rows.jsonl", "--task", "nonsense"), "unknown task 'nonsense'"),
        (("rows.jsonl", "--format", "nonsense"), "nonsense"),
        (("rows.jsonl", "-o", "task.nonsense=1"), "task.nonsense"),
    ],
)
def test_wrong_arguments_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", GOOD)
    result = check(*arguments, *(() if "--task" in arguments else ("--task", "text-classification")))
    assert result.exit_code != 0 and said in str(result.exception)
