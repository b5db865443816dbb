"""From `--data` to a split: files, formats, bad rows, classes, duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefttool import corpus, rows
from pefttool.errors import DataError
from pefttool.interfaces import Row
from pefttool.registry import Registry
from pefttool.settings import DataSettings, TrainSettings


def write(path: Path, *values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


def labelled(n: int, classes: int = 2, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": f"c{i % classes}"} for i in range(start, start + n)]


def load(registry: Registry, data: Path, seed: int = 0, task: str = "text-classification", **kw: Any) -> corpus.Corpus:
    options = {k: kw.pop(k) for k in ("skip_bad_rows", "rejects") if k in kw}
    recipe = SimpleNamespace(
        task=task,
        task_options=registry.tasks[task].Options(),
        data=DataSettings(train=str(data), **kw),
        train=TrainSettings(seed=seed),
    )
    return corpus.load(recipe, registry, **options)  # type: ignore[arg-type]


def texts(part: tuple[Row, ...]) -> list[str]:
    return [row.values["text"] for row in part]


def test_a_tenth_is_held_out_stratified_and_seeded(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(90, 3))
    found = load(registry, data)
    assert (len(found.train), len(found.eval)) == (81, 9)
    assert sorted(row.values["label"] for row in found.eval) == ["c0"] * 3 + ["c1"] * 3 + ["c2"] * 3
    assert found.labels == ("c0", "c1", "c2")
    assert found == load(registry, data)
    assert texts(found.eval) != texts(load(registry, data, seed=1).eval)


def test_a_folder_may_bring_its_own_split(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train-1.jsonl", *labelled(4))
    write(tmp_path / "d" / "train-2.jsonl", *labelled(4, start=4))
    write(tmp_path / "d" / "validation.jsonl", *labelled(2, start=8))
    write(tmp_path / "d" / ".hidden.jsonl", {"junk": 1})
    found = load(registry, tmp_path / "d")
    assert texts(found.train) == [f"text {i}" for i in range(8)]
    assert texts(found.eval) == ["text 8", "text 9"]
    other = load(registry, tmp_path / "d", eval=str(tmp_path / "d" / "train-1.jsonl"))
    assert texts(other.eval) == [f"text {i}" for i in range(4)]


def test_bad_rows_are_listed_with_their_place(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(4), {"text": 3, "label": "c0"}, {"words": "x"})
    with data.open("a") as stream:
        stream.write("oops\n")
    with pytest.raises(DataError) as caught:
        load(registry, data)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{data}:5: column 'text': found 3, expected text"
    assert lines[1].startswith(f"{data}:6: found columns 'words', expected")
    assert lines[2].startswith(f"{data}:7: found 'oops'")
    assert lines[3].startswith("3 of 7 rows cannot be used") and "--skip-bad-rows" in lines[3]


def test_bad_rows_can_be_skipped_and_are_kept(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(8), {"text": 3, "label": "c0"})
    found = load(registry, data, skip_bad_rows=True, rejects=tmp_path / "bad.jsonl")
    assert len(found.train) + len(found.eval) == 8
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {
        "file": str(data),
        "line": 9,
        "problem": "column 'text': found 3, expected text",
    }
    assert any("1 rows cannot be used" in notice for notice in found.notices)


def test_duplicates_across_the_split_are_reported(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *labelled(4))
    write(tmp_path / "d" / "test.jsonl", {"text": "new", "label": "c0"}, {"text": " text  1", "label": "c1"})
    (notice,) = (n for n in load(registry, tmp_path / "d").notices if "warning" in n)
    assert "1 held-out rows are among the training rows" in notice
    assert "test.jsonl:2" in notice and "train.jsonl:2" in notice


def test_a_class_that_only_the_held_out_rows_have_is_an_error(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *labelled(4))
    write(tmp_path / "d" / "eval.jsonl", {"text": "x", "label": "c9"})
    with pytest.raises(DataError, match=r"eval\.jsonl:1: class 'c9' is not among the training rows' \(c0, c1\)"):
        load(registry, tmp_path / "d")


def test_the_task_option_columns_reach_every_check(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"text": "only one row"})
    with pytest.raises(DataError, match=r"data\.train: no rows are left|data\.eval: no rows are left"):
        load(registry, data, task="causal-lm", eval_fraction=0.01)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"?", r"no format recognises it: say -o data\.format=NAME .*csv.*jsonl"),
        ("a.jsonl", b"", "has no usable row"),
        ("a.parquet", b"PAR1 but no more", "cannot be read as parquet"),
    ],
)
def test_files_that_are_no_data(registry: Registry, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows.peek(tmp_path / name, registry)


@pytest.mark.parametrize("reference", ["nowhere.jsonl", "nosource:thing", "C:\\data.csv", "a\0b"])
def test_data_that_is_nowhere_is_named(registry: Registry, reference: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        rows.resolve(reference, registry)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no files"):
        rows.find_files(tmp_path)


def test_peek_gives_the_columns_of_the_first_rows(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"a": 1}, {"b": 2}, *({"c": i} for i in range(50)))
    columns, sample = rows.peek(data, registry)
    assert columns == ["a", "b", "c"] and len(sample) == rows.SAMPLE


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {"x": 1}), write(tmp_path / "b", {"x": 2})
    before = rows.fingerprint([a, b])
    assert before == rows.fingerprint([a, b]) != rows.fingerprint([b, a])
    write(b, {"x": 3})
    assert rows.fingerprint([a, b]) != before


CLASSES = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=80)


@given(CLASSES, st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_class_of_two_is_on_both_sides(classes: list[str], fraction: float, seed: int) -> None:
    data = [Row({"label": c}, "f", i) for i, c in enumerate(classes)]
    train, held_out = corpus.split(data, fraction, seed, lambda row: row.values["label"])
    assert sorted([*train, *held_out], key=lambda r: r.line) == data
    for c in set(classes):
        if classes.count(c) >= 2:
            for part in (train, held_out):
                assert any(row.values["label"] == c for row in part)
            assert abs(sum(r.values["label"] == c for r in held_out) - fraction * classes.count(c)) <= 1


@given(CLASSES, st.integers(1, 100), st.integers(0, 5))
def test_a_sample_keeps_order_and_shares(classes: list[str], most: int, seed: int) -> None:
    data = [Row({"label": c}, "f", i) for i, c in enumerate(classes)]
    chosen = corpus.sample(data, most, seed, lambda row: row.values["label"])
    assert len(chosen) == min(most, len(data))
    assert [r.line for r in chosen] == sorted(r.line for r in chosen)
    for c in set(classes):
        share = classes.count(c) * len(chosen) / len(classes)
        assert abs(sum(r.values["label"] == c for r in chosen) - share) < 1
