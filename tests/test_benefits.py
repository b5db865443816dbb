"""The benchmark of benefits: what it reads from a run's record, what it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
MODULES = ("benefits", "benefit_jobs", "sharing")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main module; its neighbours are found beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import benefits

    yield benefits
    for name in MODULES:
        sys.modules.pop(name, None)


def step(seconds: float, epoch: float) -> dict[str, Any]:
    return {"type": "StepDone", "seconds": seconds, "epoch": epoch}


def looked(value: float) -> dict[str, Any]:
    return {"type": "Evaluated", "metrics": {"accuracy": value, "loss": 1.0}}


def events(*values: float) -> list[dict[str, Any]]:
    """A run with an evaluation after every two steps of half a second."""
    found: list[dict[str, Any]] = [
        {"type": "DataReady", "train_rows": 64},
        {"type": "TrainStarted", "trainable_parameters": 10},
    ]
    for i, value in enumerate(values):
        found += [step(0.5, i + 0.5), step(0.5, i + 1.0), looked(value)]
    return found


def outcome(bench: Any, *values: float) -> Any:
    import benefit_jobs

    read = benefit_jobs.read_events(events(*values), "accuracy")
    return benefit_jobs.Outcome(before=0.5, after=values[-1], cpu=36.0, peak=900.0, saved=2.5, **read)


def test_time_to_a_quality_is_of_training_alone(bench: Any) -> None:
    found = outcome(bench, 0.6, 0.7, 0.65)
    assert found.curve == ((2, 1.0, 0.6), (4, 2.0, 0.7), (6, 3.0, 0.65))
    assert (found.steps, found.rows, found.epochs, found.trainable) == (6, 64, 3.0, 10)
    job = bench.JOBS["sentiment"]
    assert found.best(job) == 0.7 and found.reached(job, 0.7) == (4, 2.0) and found.reached(job, 0.8) is None
    lower = bench.JOBS["chat"]
    assert found.best(lower) == 0.6 and found.reached(lower, 0.65) == (2, 1.0)


def test_the_table_compares_with_the_best_from_scratch_and_says_what_is_estimated(bench: Any) -> None:
    import benefit_jobs

    outcomes = {
        benefit_jobs.TUNED: outcome(bench, 0.8, 0.9),
        benefit_jobs.SCRATCH: outcome(bench, 0.5, 0.7),
        "lazy": outcome(bench, 0.5, 0.6),
    }
    text = bench.table(bench.JOBS["sentiment"], outcomes, watts=100.0)
    assert "steps to 0.700" in text and "energy, Wh (*estimated*)" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| **0.900** | 10 | 4 | 2 | 1.0 | 36 | 900 | 2.5 | 1.00 |" in rows[benefit_jobs.TUNED]
    assert "not reached" in rows["lazy"] and "| 0.500 | 0 | 0 |" in rows["before: an untrained head"]


def test_what_was_measured_is_shown_job_by_job(bench: Any) -> None:
    import benefit_jobs

    ways = {way: outcome(bench, 0.8, 0.9).as_json() for way in (benefit_jobs.TUNED, benefit_jobs.SCRATCH)}
    sharing = dict.fromkeys(("two models MiB", "shared MiB", "two models disk MiB", "shared disk MiB"), 1.0)
    sharing |= {"load ms": 5.0, "switch ms": 0.5, "same answers": True, "rows": 4}
    found = {"chat": ways, "sentiment": ways, "transfer": {"films": 0.75}, "sharing": sharing}
    text = bench.page(found, 15.0)
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert [title.split()[1] for title in titles] == ["Sentiment", "Conversations:", "From", "Two"]
    assert "| films | 0.750 |" in text and "/" not in text.splitlines()[-1].split("`")[1].removeprefix(
        "python benchmarks/"
    )


def test_only_what_stands_between_the_markers_is_replaced(bench: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.START}\nold\n{bench.END}\nafter\n")
    bench.write(page, "new")
    assert page.read_text() == f"before\n{bench.START}\nnew\n{bench.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the markers"):
        bench.write(page, "new")


def test_recipes_are_whole(bench: Any) -> None:
    """Every way of every job, quick or not, is a recipe without mistakes."""
    import benefit_jobs

    from pefttool.config import recipe, registry

    known = registry.build()
    for job in benefit_jobs.JOBS.values():
        for changes in ({}, job.quick, *job.ways.values()):
            found = recipe.resolve(benefit_jobs.changed(job.recipe, changes), known)
            assert found.data.train is not None and found.model == job.recipe["model"]
