"""From `--data` to a split: files, formats, bad rows, classes, duplicates."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_registry import PLUGIN, make
from hypothesis import given
from hypothesis import strategies as st

from pefttool import Task
from pefttool.api.errors import DataError
from pefttool.api.values import Caution, Row
from pefttool.config.registry import Kind, Registered, Registry
from pefttool.config.settings import DataSettings, TrainSettings
from pefttool.data import corpus
from pefttool_text import label_kinds


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


def test_what_the_training_rows_settle_holds_for_every_row(registry: Registry, tmp_path: Path) -> None:
    numbers = [{"text": f"text {i}", "label": i + 0.5} for i in range(8)]
    found = load(registry, write(tmp_path / "a.jsonl", *numbers))
    assert found.options.kind == "regression" and found.labels == ()
    write(tmp_path / "d" / "train.jsonl", *numbers)
    write(tmp_path / "d" / "eval.jsonl", {"text": "new", "label": 3}, {"text": "another", "label": "good"})
    with pytest.raises(DataError, match=r"eval\.jsonl:2: column 'label': found 'good', expected a number"):
        load(registry, tmp_path / "d")
    assert len(load(registry, tmp_path / "d", skip_bad_rows=True).eval) == 1
    with pytest.raises(DataError, match=r"b\.jsonl:5: column 'label': found \['a'\], expected a class name or number"):
        load(registry, write(tmp_path / "b.jsonl", *labelled(4), {"text": "x", "label": ["a"]}))


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
    with pytest.raises(DataError) as caught:
        load(registry, data)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{data}:5: column 'text': found 3, expected text"
    assert lines[1].startswith(f"{data}:6: found columns 'words', expected")
    assert lines[2].startswith("2 of 6 rows cannot be used: mend them") and "--skip-bad-rows" in lines[2]


def test_bad_rows_can_be_skipped_and_are_kept(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(8), {"text": 3, "label": "c0"})
    found = load(registry, data, skip_bad_rows=True, rejects=tmp_path / "bad.jsonl")
    assert len(found.train) + len(found.eval) == 8
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {
        "file": str(data),
        "line": 9,
        "problem": "column 'text': found 3, expected text",
    }
    assert f"left out 1 of 9 rows that cannot be used: see {tmp_path / 'bad.jsonl'}" in found.notices


def test_duplicates_across_the_split_are_reported(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *labelled(4))
    write(tmp_path / "d" / "test.jsonl", {"text": "new", "label": "c0"}, {"text": " text  1", "label": "c1"})
    (notice,) = (n for n in load(registry, tmp_path / "d").notices if isinstance(n, Caution))
    assert "1 of 2 held-out rows are among the training rows" in notice
    assert "test.jsonl:2" in notice and "train.jsonl:2" in notice


def refused(registry: Registry, data: Path, reason: str, **settings: Any) -> None:
    """Unless it is allowed: then it is a warning where single rows are concerned."""
    with pytest.raises(DataError, match=rf"^data\.eval: .*{reason}.*: give held-out rows .*allow_overlap=true$"):
        load(registry, data, **settings)
    found = load(registry, data, allow_overlap=True, **settings)
    assert any("held-out rows are among the training rows too" in notice for notice in found.notices)


def test_held_out_rows_that_are_mostly_training_rows_are_refused(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *labelled(9))
    write(tmp_path / "d" / "eval.jsonl", *labelled(4, start=6))
    refused(registry, tmp_path / "d", r"3 of 4 held-out rows are .*, such as \S+eval\.jsonl:1 = \S+train\.jsonl:7")
    write(tmp_path / "d" / "eval.jsonl", *labelled(6, start=6))
    assert "3 of 6 held-out rows" in "".join(load(registry, tmp_path / "d").notices)


def test_a_file_that_is_trained_on_and_judged_by_is_refused(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(9))
    refused(registry, data, r"a\.jsonl is trained on", eval=str(data))
    copy = write(tmp_path / "b.jsonl", *labelled(9))
    refused(registry, data, r"b\.jsonl has the same content as \S+a\.jsonl, which is trained on", eval=str(copy))
    write(tmp_path / "d" / "train.jsonl", *labelled(9))
    write(tmp_path / "d" / "test.jsonl", *labelled(9))
    refused(registry, tmp_path / "d", r"test\.jsonl has the same content as \S+train\.jsonl")


def test_histories_whose_last_items_are_trained_on_are_refused(registry: Registry, tmp_path: Path) -> None:
    """The task judges by the last item of each, so that no row that it makes of them is another's double."""
    rows = [{"items": [f"i{(i * k) % 11}" for k in range(1, 6)]} for i in range(1, 9)]
    write(tmp_path / "d" / "train.jsonl", *rows)
    write(tmp_path / "d" / "eval.jsonl", *rows[2:5])
    with pytest.raises(DataError, match=r"3 of 3 held-out rows are .*eval\.jsonl:1 = \S+train\.jsonl:3: give"):
        load(registry, tmp_path / "d", task="next-item")
    write(tmp_path / "d" / "train.jsonl", *({"items": row["items"][:-1]} for row in rows))
    assert not any(isinstance(n, Caution) for n in load(registry, tmp_path / "d", task="next-item").notices)


def test_data_that_says_things_twice_is_no_mistake(registry: Registry, tmp_path: Path) -> None:
    """A short table has the same rows again and again, wherever it is cut."""
    rows = [{"text": f"text {i % 5}", "label": f"c{i % 5 % 2}"} for i in range(40)]
    found = load(registry, write(tmp_path / "a.jsonl", *rows))
    assert "4 of 4 held-out rows are among the training rows too" in "".join(found.notices)
    write(tmp_path / "d" / "train.jsonl", *rows)
    write(tmp_path / "d" / "eval.jsonl", *rows[:7])
    assert "7 of 7 held-out rows" in "".join(load(registry, tmp_path / "d").notices)


def tabular(tell: Mapping[str, Any], count: int = 40, wrong: int = 0) -> list[dict[str, Any]]:
    """Rows of two numbers, and `leak`: what `tell` says of the class, wrong in the first rows."""
    rows = []
    for i in range(count):
        label = "yes" if i % 3 else "no"
        told = label if i >= wrong else {"yes": "no", "no": "yes"}[label]
        rows.append({"age": 20 + i, "income": 1000 + 7 * i, "leak": tell[told], "label": label})
    return rows


@pytest.mark.parametrize("tell", [{"yes": "yes", "no": "no"}, {"yes": 1, "no": 0}, {"yes": "a", "no": "b"}])
def test_an_input_that_tells_the_class_is_told(registry: Registry, tmp_path: Path, tell: Mapping[str, Any]) -> None:
    def warnings(*rows: dict[str, Any]) -> list[str]:
        found = load(registry, write(tmp_path / "a.jsonl", *rows), task="tabular-classification")
        return [notice for notice in found.notices if "tells the class" in notice]

    (text,) = warnings(*tabular(tell))
    assert text.startswith("column 'leak' tells the class in nearly all rows, and is an input")
    assert warnings(*tabular(tell, count=400, wrong=2)) == [text]
    assert warnings(*tabular(tell, count=400, wrong=20)) == []
    assert warnings(*tabular(tell, count=12)) == []  # by chance, perhaps


def test_what_tells_the_class_and_is_no_input_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    """Names beside numbers of classes, as many corpora have them."""
    rows = [{**row, "label_text": row["label"].upper()} for row in labelled(60, 3)]
    assert not any(
        "tells the class in" in notice for notice in load(registry, write(tmp_path / "a.jsonl", *rows)).notices
    )


def test_a_class_that_only_the_held_out_rows_have_is_an_error(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *labelled(4))
    write(tmp_path / "d" / "eval.jsonl", {"text": "x", "label": "c9"})
    with pytest.raises(DataError, match=r"eval\.jsonl:1: class 'c9' is not among the training rows' \(c0, c1\)"):
        load(registry, tmp_path / "d")


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_one_row_alone_has_nothing_held_out(registry: Registry, tmp_path: Path, fraction: float) -> None:
    data = write(tmp_path / "a.jsonl", {"text": "only one row"})
    with pytest.raises(DataError, match=r"data\.eval: no rows are left \(1 train, 0 eval\): .*data\.eval"):
        load(registry, data, task="causal-lm", eval_fraction=fraction)


def test_held_out_rows_that_are_all_bad_are_never_replaced(registry: Registry, tmp_path: Path) -> None:
    data, held_out = write(tmp_path / "a.jsonl", *labelled(9)), write(tmp_path / "b.jsonl", {"text": 1})
    with pytest.raises(DataError, match=r"data\.eval: no rows are left \(9 train, 0 eval\)"):
        load(registry, data, eval=str(held_out), skip_bad_rows=True)
    held_out.write_text("")
    with pytest.raises(DataError, match=r"data\.eval: no rows are left"):
        load(registry, data, eval=str(held_out))


def test_a_held_out_file_in_the_training_folder_is_not_trained_on(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", *labelled(6))
    held_out = write(tmp_path / "d" / "b.jsonl", *labelled(4, start=6))
    found = load(registry, tmp_path / "d", eval=str(held_out))
    assert texts(found.train) == [f"text {i}" for i in range(6)]
    assert texts(found.eval) == [f"text {i}" for i in range(6, 10)]
    assert not any(isinstance(notice, Caution) for notice in found.notices)


def test_files_of_neither_part_are_said(registry: Registry, tmp_path: Path) -> None:
    for i, name in enumerate(("train", "eval", "more")):
        write(tmp_path / "d" / f"{name}.jsonl", *labelled(4, start=4 * i))
    (tmp_path / "d" / "README.md").write_text("What this is.")
    found = load(registry, tmp_path / "d")
    assert len(found.train) == 4
    (notice,) = (n for n in found.notices if "left out" in n)
    assert "README.md and 1 more" in notice


def test_at_most_two_bad_rows_are_listed(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(2), *({"text": i, "label": "c0"} for i in range(7)))
    with pytest.raises(DataError) as caught:
        load(registry, data)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines[:2]] == ["3", "4"] and len(lines) == 3
    assert lines[2].startswith("7 of 9 rows cannot be used; the first 2 are shown, `pefttool data check` shows more")


def test_rejects_name_files_whose_name_is_no_text(registry: Registry, tmp_path: Path) -> None:
    data = write(Path(f"{tmp_path}/\udcff.jsonl"), *labelled(8), {"text": 3})
    load(registry, data, skip_bad_rows=True, rejects=tmp_path / "new" / "bad.jsonl")
    assert json.loads((tmp_path / "new" / "bad.jsonl").read_text())["file"] == str(data)


def test_a_few_rows_are_chosen_by_the_seed(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(90, 3))
    found = load(registry, data, max_train_rows=6, max_eval_rows=3)
    assert sorted(row.values["label"] for row in found.train) == ["c0", "c0", "c1", "c1", "c2", "c2"]
    assert sorted(row.values["label"] for row in found.eval) == ["c0", "c1", "c2"]
    assert found == load(registry, data, max_train_rows=6, max_eval_rows=3)
    assert found.train != load(registry, data, seed=1, max_train_rows=6, max_eval_rows=3).train


def test_too_few_rows_for_every_class_say_which_key_to_raise(registry: Registry, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *labelled(90, 3))
    with pytest.raises(DataError, match=r"a\.jsonl:\d+: class 'c2' is not .* raise data\.max_train_rows \(it is 2\)"):
        load(registry, data, max_train_rows=2)


def tags(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({tag for row in rows for tag in row.values["tags"]}))


def tagger() -> Task:
    """A task with labels but without classes to stratify by, as token classification is."""
    task: Task = make(
        Task,
        name="tagger",
        labels=lambda self, rows, options: tags(rows),
        key=lambda self, values, options: values["word"].lower(),
    )
    return task


def tagged(registry: Registry, task: Task) -> Registry:
    return replace(registry, tasks=Kind("task", {task.name: Registered(task, PLUGIN)}, {}))


def test_labels_need_no_classes_to_stratify_by(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *({"word": f"w{i}", "tags": ["B", "O"]} for i in range(4)))
    held_out = write(tmp_path / "d" / "eval.jsonl", *({"word": f"x{i}", "tags": ["O"]} for i in range(6)))
    found = load(tagged(registry, tagger()), tmp_path / "d", task="tagger")
    assert found.labels == ("B", "O") and len(found.eval) == 6
    with held_out.open("a") as stream:
        stream.write('{"word": "y", "tags": ["O", "Z"]}\n{"word": "z", "tags": ["A"]}\n')
    with pytest.raises(DataError, match=r"eval\.jsonl:7: class 'Z' is not among the training rows' \(B, O\)"):
        load(tagged(registry, tagger()), tmp_path / "d", task="tagger")


def test_duplicates_are_what_the_task_says(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", *({"word": w, "tags": ["O"]} for w in ("a", "b", "A")))
    write(tmp_path / "d" / "eval.jsonl", *({"word": w, "tags": ["O"]} for w in ("x", "B", "a", "a")))
    (notice,) = (
        n for n in load(tagged(registry, tagger()), tmp_path / "d", task="tagger").notices if isinstance(n, Caution)
    )
    assert "3 of 4 held-out rows" in notice and "eval.jsonl:2 = " in notice and "train.jsonl:2" in notice


def test_a_complaint_of_the_task_has_its_place(registry: Registry, tmp_path: Path) -> None:
    def check(self: Task, values: Mapping[str, Any], options: Any) -> str | None:
        return None if values["n"] % 2 else f"found {values['n']}, expected an odd number"

    odd = make(Task, name="odd", check_row=check)
    data = write(tmp_path / "a.jsonl", *({"n": n} for n in (1, 3, 4, 5)))
    with pytest.raises(DataError) as caught:
        load(tagged(registry, odd), data, task="odd")
    assert str(caught.value).splitlines()[0] == f"{data}:3: found 4, expected an odd number"
    found = load(tagged(registry, odd), data, task="odd", skip_bad_rows=True)
    assert sorted(row.values["n"] for row in (*found.train, *found.eval)) == [1, 3, 5]


def test_the_split_is_the_same_in_every_process_and_version() -> None:
    """Known answers: a split that depended on hashes or on the interpreter would make replays differ."""
    data = [Row({"label": "abc"[i % 3]}, "f", i) for i in range(30)]
    _, held_out = corpus.split(data, 0.2, 7, lambda row: row.values["label"], lambda row: [row.values["label"]])
    assert [row.line for row in held_out] == [6, 16, 18, 23, 26, 28]
    assert [row.line for row in corpus.sample(data, 5, 7, lambda row: row.values["label"])] == [6, 16, 18, 26, 28]


CLASSES = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=80)


@given(CLASSES, st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_class_of_two_is_on_both_sides(classes: list[str], fraction: float, seed: int) -> None:
    data = [Row({"label": c}, "f", i) for i, c in enumerate(classes)]
    train, held_out = corpus.split(
        data, fraction, seed, lambda row: row.values["label"], lambda row: [row.values["label"]]
    )
    assert sorted([*train, *held_out], key=lambda r: r.line) == data
    for c in set(classes):
        if classes.count(c) == 1:
            assert all(row.values["label"] != c for row in held_out), "the only row of a class is trained on"
        else:
            for part in (train, held_out):
                assert any(row.values["label"] == c for row in part)
            assert abs(sum(r.values["label"] == c for r in held_out) - fraction * classes.count(c)) <= 1


@given(st.integers(1, 4), st.integers(0, 5))
def test_rows_of_several_classes_are_held_out_in_their_share(most: int, seed: int) -> None:
    """Though nearly every combination is of one row; and no class is held out that nothing is trained on."""
    draw = random.Random(seed)
    kind, names = label_kinds.MULTI, [f"c{i}" for i in range(20)]
    data = [
        Row({"label": kind.read(draw.sample(names, draw.randint(1, most)) if i else ["rare"])}, "f", i)
        for i in range(200)
    ]
    train, held_out = corpus.split(
        data, 0.1, seed, lambda row: kind.stratum(row.values["label"]), lambda row: kind.classes(row.values["label"])
    )
    assert sorted([*train, *held_out], key=lambda r: r.line) == data and 15 <= len(held_out) <= 30

    def classes(part: list[Row]) -> set[str]:
        return {name for row in part for name in row.values["label"]}

    assert classes(held_out) <= classes(train)


@given(CLASSES, st.integers(1, 100), st.integers(0, 5))
def test_a_sample_keeps_order_shares_and_classes(classes: list[str], most: int, seed: int) -> None:
    data = [Row({"label": c}, "f", i) for i, c in enumerate(classes)]
    chosen = corpus.sample(data, most, seed, lambda row: row.values["label"])
    assert len(chosen) == min(most, len(data))
    assert [r.line for r in chosen] == sorted(r.line for r in chosen)
    rare = sum(classes.count(c) * len(chosen) < len(classes) for c in set(classes))
    for c in set(classes):
        share = classes.count(c) * len(chosen) / len(classes)
        count = sum(r.values["label"] == c for r in chosen)
        assert share - 1 - rare < count < share + 1  # a class gives rows up only to classes that would have none
        assert count >= 1 or most < len(set(classes))
