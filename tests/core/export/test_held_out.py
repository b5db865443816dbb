"""The rows that a finished run is judged by: its own as they were, or a file's that it can be judged by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_runs import Runs
from frozen_runs import fine_tune, store_model
from terminal import Terminal

from pefttool.api.errors import DataError
from pefttool.config.registry import Registry
from pefttool.data import batches, encoding
from pefttool.export import held_out
from pefttool.export.reload import Reloaded, reload


@pytest.fixture(scope="module")
def run(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Runs(registry, tmp_path_factory.mktemp("held-out"))["head-classes"]


@pytest.fixture(scope="module")
def loaded(run: Path, registry: Registry) -> Reloaded:
    return reload(run, registry, "cpu")


@pytest.fixture
def one_row_more(run: Path) -> Iterator[None]:
    (data,) = run.parents[1].glob("rows-*/rows.jsonl")
    before = data.read_text()
    data.write_text(before + json.dumps({"text": "one more", "label": "yes"}) + "\n")
    yield
    data.write_text(before)


@pytest.mark.usefixtures("one_row_more")
def test_data_that_has_changed_is_not_split_anew(run: Path, registry: Registry, loaded: Reloaded) -> None:
    for folder in (run, run / "adapter"):
        with pytest.raises(DataError, match=r"rows\.jsonl is not what .* was split from .*: restore it, or give"):
            held_out.of(folder, registry, loaded, None, None)


@pytest.mark.usefixtures("one_row_more")
@pytest.mark.parametrize("metrics", [None, {"after": {}}])
def test_a_run_that_does_not_say_what_it_was_split_from_goes_by_its_recipe(
    metrics: object, run: Path, registry: Registry, loaded: Reloaded
) -> None:
    path = run / "metrics.json"
    before = path.read_bytes()
    path.unlink() if metrics is None else path.write_text(json.dumps(metrics))
    try:
        assert held_out.of(run, registry, loaded, None, None)
    finally:
        path.write_bytes(before)


def test_a_class_that_the_run_does_not_know_is_named_with_its_place(
    tmp_path: Path, registry: Registry, loaded: Reloaded, run: Path
) -> None:
    data = tmp_path / "more.jsonl"
    data.write_text("".join(json.dumps({"text": "a film", "label": label}) + "\n" for label in ("so", "maybe")))
    rows = held_out.of(run, registry, loaded, str(data), None)
    known = re.escape("class 'maybe' is not among the training rows' (no, so, yes): mend it")
    with pytest.raises(DataError, match=rf"more\.jsonl:2: {known}"):
        encoding.encode(rows, loaded.task, loaded.processor, loaded.setting)


def test_rows_in_no_figure_are_counted(tmp_path: Path, registry: Registry, terminal: Terminal) -> None:
    """An answer behind a long prompt is cut off: of training rows and of held-out rows, each by themselves."""
    long, short = ({"instruction": text, "output": "an answer"} for text in ("long " * 60, "short"))
    for name, count in (("train", 1), ("eval", 2)):
        kept = [{**short, "instruction": f"short {name} {i}"} for i in range(4)]
        cut = [{**long, "instruction": f"{name} {i} {long['instruction']}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*kept, *cut]))
    model, data, folder = store_model("llama", tmp_path / "model"), tmp_path / "train.jsonl", tmp_path / "run"
    options = {"data__eval": str(tmp_path / "eval.jsonl"), "train__epochs": 1, "check": "none"}
    seen = fine_tune(registry, folder, model, data, "chat", **options)
    said = [event["text"] for event in seen.events if event["type"] == "Notice" and "left out" in event["text"]]
    why = "it is empty, or train.sequence_length=96 cuts it off"
    assert said == [
        f"left out: 1 of 5 training rows, with nothing to train, such as {tmp_path / 'train.jsonl'}:5: {why}",
        f"left out: 2 of 6 held-out rows, with nothing to judge by, such as {tmp_path / 'eval.jsonl'}:5: {why}",
    ]
    terminal.allow("head", "text")
    code, out, _ = terminal.run("eval", str(folder), "--device", "cpu")
    assert code == 0 and out.startswith("4 rows\nleft out: 2 of 6 rows, with nothing to judge by, such as ")
    code, out, _ = terminal.run("eval", str(folder), "--device", "cpu", "--json")
    assert code == 0 and (json.loads(out)["rows"], json.loads(out)["left_out"]) == (4, 2)
