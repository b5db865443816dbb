"""The side-by-side benchmark: what it counts as training, what it refuses, what it writes; and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's main module; its neighbours are found beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import side_by_side

    yield side_by_side
    for name in ("side_by_side", "cells", "jobs", "ladder"):
        sys.modules.pop(name, None)


def measured(**changes: Any) -> Any:
    import cells

    run = cells.Measured(
        seconds=2.0,
        first_step=3.0,
        timed=3000,
        wall=9.0,
        cpu=9.0,
        peak=100.0,
        steps=4,
        rows=32,
        tokens=4000,
        trained=3968,
        quality=3.5,
    )
    return replace(run, **changes)


def event(kind: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "time": 1000.0 + at, "monotonic": at, **fields}


def test_evaluations_are_not_training_and_what_came_before_is_the_first_steps_wait(bench: Any) -> None:
    import cells

    step = {"rows": 8, "tokens": 900, "seconds": 1.0}
    events = [
        event("DataReady", 3.0, trained_tokens=1784, train_rows=2),
        event("Progress", 3.5, what="features", done=1, total=2),
        event("Progress", 4.0, what="features", done=2, total=2),
        event("Progress", 4.1, what="features", done=1, total=1),  # of held-out rows: no part of training
        event("Progress", 4.25, what="rehearsal", done=0, total=1),
        event("Progress", 4.75, what="rehearsal", done=1, total=1),
        event("TrainStarted", 5.0),
        event("StepDone", 6.5, **step),
        event("Evaluated", 10.5),
        event("StepDone", 12.0, **step),
        event("Evaluated", 20.0),
        event("RunFinished", 30.0, after={"loss": 3.25, "accuracy": 0.5}),
    ]
    found = cells.read_events(events, bench.JOBS["lm"], began=1000.0)
    assert found["seconds"] == 1.5 and found["timed"] == 900  # the first step warms up
    assert found["first_step"] == pytest.approx(5.5 - (4.75 - 4.1))
    assert (found["steps"], found["rows"], found["tokens"], found["trained"]) == (2, 16, 1800, 1784)
    assert found["quality"] == 3.25
    frozen = cells.read_events(events, bench.JOBS["head"], began=1000.0)
    assert frozen["seconds"] == 3.0 + 1.0 and frozen["timed"] == 16


@pytest.mark.parametrize("unequal", [{"trained": 3967}, {"steps": 3}])
def test_unequal_work_is_not_compared(bench: Any, unequal: dict[str, int]) -> None:
    job, run = bench.JOBS["lm"], measured()
    bench.check_equal_work(job, {"a": run, "b": replace(run, tokens=4399)})
    with pytest.raises(AssertionError, match=r"lm: (trained units|tokens a step) differ"):
        bench.check_equal_work(job, {"a": run, "b": replace(run, **unequal)})


def test_ratios_are_of_one_round_and_stand_beside_their_targets(bench: Any) -> None:
    runs = {
        bench.PEER: [measured(seconds=8.0), measured(seconds=16.0), measured(seconds=9.0)],
        bench.TUNED: [measured(seconds=4.0)] * 3,
        bench.OURS: [measured(), measured(), measured(seconds=3.0)],
    }
    text = bench.table(bench.JOBS["lm"], runs)
    assert "**4.00 (3.00 to 8.00)**, target 3" in text and "**2.00 (1.33 to 2.00)**, target 2" in text
    assert "32 rows, 1 epoch, 4 steps; 3,968 trained tokens and 1000 / 1000 / 1000 tokens a step" in text


def test_a_technique_that_was_faster_in_one_round_and_slower_in_another_is_unresolved(bench: Any) -> None:
    import ladder

    runs = {"a": [measured(), measured()], "b": [measured(seconds=1.0)] * 2, "c": [measured(seconds=0.5), measured()]}
    lines = ladder.table(bench.JOBS["lm"], runs).splitlines()[-2:]
    assert "| 2.00 (2.00 to 2.00) |" in lines[0] and lines[1].count("*unresolved*") == 1


def test_every_rung_of_every_ladder_can_be_taken_away(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ladder
    import rung

    named = {step.name for steps in ladder.LADDERS.values() for step in steps if step.name}
    assert named == set(rung.OFF) and set(ladder.LADDERS) == set(bench.JOBS)
    sys.modules.pop("rung")


def test_documents_are_of_mixed_length_and_always_the_same(bench: Any, tmp_path: Path) -> None:
    import jobs

    first, second = (
        jobs.write_data(bench.JOBS["lm"], tmp_path / str(i), 200, 20) for i in range(2) if _made(tmp_path / str(i))
    )
    texts = [json.loads(line)["text"] for line in first.train.read_text(encoding="utf-8").splitlines()]
    assert first.train.read_bytes() == second.train.read_bytes() and len(texts) == 200
    words = sorted(len(text.split()) for text in texts)
    assert words[-1] > 3 * words[100] > 6 * words[10]


def _made(folder: Path) -> bool:
    folder.mkdir()
    return True


def test_a_table_replaces_what_stands_between_its_markers(bench: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((FOLDER.parent / "docs/benchmarks.md").read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):
        bench.write(page, "| figures |", "side by side")
        bench.write(page, "| rungs |", "ladder")
    text = page.read_text(encoding="utf-8")
    assert text.count("| figures |") == 1 and text.count("| rungs |") == 1 and text.startswith("# Side by side")
    with pytest.raises(SystemExit, match="lacks the markers"):
        bench.write(page, "", "another")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["lm-nf4", "classification", "head"])
def test_it_runs(tmp_path: Path, job: str) -> None:
    """Both sides, to the end, with equal work, on a few rows."""
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "side_by_side.py"), "--quick", "--rows", "0.1", "--jobs", job]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(out.read_text(encoding="utf-8"))["jobs"][job]
    assert set(runs) == {"peer", "peer, tuned", "pefttool"}
    assert all(len(found) == 1 and found[0]["seconds"] > 0 for found in runs.values())
