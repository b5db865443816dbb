"""What `pefttool predict` answers: numbers in the data's units, the same after a reload, and nothing that is none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from finished_runs import FAST, Runs
from frozen_runs import fine_tune, store_model, text
from terminal import Terminal

from pefttool.api.errors import DataError
from pefttool.api.values import Row
from pefttool.config.registry import Registry
from pefttool.inference.evaluate import require_numbers


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ({"label": "x", "score": math.nan, "scores": {"x": math.nan}}, "score"),
        ({"label": "x", "scores": {"x": 0.5, "y": -math.inf}}, "y"),
        ({"forecast": [[1.0, 2.0], [math.inf, 1.0]]}, "forecast"),
        ({"objects": [{"bbox": [0, 1, 2, 3], "score": 0.5}, {"bbox": [0, math.nan, 2, 3]}]}, "bbox"),
    ],
)
def test_an_answer_that_is_no_number_names_its_row(answer: dict[str, Any], name: str) -> None:
    good = {"tags": ["O", None], "scores": [0.5, None], "span": (1, 2), "value": 1e300}  # null: a word that was cut off
    rows = [Row({}, "rows.jsonl", line) for line in (1, 2)]
    require_numbers([good, good], rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: '{name}' of the answer is no finite number"):
        require_numbers([good, answer], rows)


def test_predict_refuses_what_is_no_number(
    registry: Registry, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    run = Runs(registry, tmp_path)["lora-classes"]
    answer = [{"label": "no", "score": math.nan}]
    monkeypatch.setattr("pefttool.inference.predictor.Predictor.predict", lambda *given: answer)
    terminal.run("plugins")  # what the run printed is read
    code, out, err = terminal.run("predict", str(run), "--data", str(tmp_path / "rows-text-classification/rows.jsonl"))
    assert code == 1 and out == ""
    assert re.search(r"rows\.jsonl:\d+: 'score' of the answer is no finite number", err[-1])  # of the first batch
    assert "--dtype float32" in err[-1]


def test_a_run_on_numbers_far_from_one_reloads_to_the_same(
    registry: Registry, terminal: Terminal, tmp_path: Path
) -> None:
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    store_model("bert", tmp_path / "bert")
    labels = [1000.5 + 2 * i for i in range(22)]
    rows.write_text("".join(json.dumps({"text": text(i), "label": x}) + "\n" for i, x in enumerate(labels)))
    seen = fine_tune(registry, run, tmp_path / "bert", rows, "text-classification", "lora", **FAST)
    assert max(seen.losses) < 10 and seen.after["rmse"] < 30
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    terminal.run("plugins")
    code, out, _ = terminal.run("eval", str(run), "--json", "--device", "cpu")
    again = json.loads(out)
    assert code == 0 and {name: again[name] for name in seen.after} == pytest.approx(seen.after)
    code, out, _ = terminal.run("predict", str(run), "--data", str(rows), "--device", "cpu")
    values = [json.loads(line)["value"] for line in out.splitlines()]
    assert code == 0 and len(set(values)) == len(labels) and all(950 < value < 1100 for value in values)
