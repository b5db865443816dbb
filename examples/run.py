"""Run the examples and compare: the tuned model against the one before, a trivial answer, and the same from scratch.

    python examples/run.py                      all examples, three seeds each; docs/results.md is written anew
    python examples/run.py 06-fraud             one of them
    python examples/run.py --miniature 06-fraud seconds instead of minutes: does it run at all? Nothing is written

Each run is `pefttool run RECIPE -o train.seed=S` in a process of its own, two of them at a time. The exit status is 1
if a tuned model does not beat every baseline by more than the spread of its seeds.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import results
import scratch
from experiment import HERE, Experiment, examples, load
from process import Run, Start, cores, pefttool, side_by_side

TUNED, SCRATCH = "tuned with seed", "from scratch with seed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="EXAMPLE", help=f"of {', '.join(examples())}; default: all")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of the example")
    parser.add_argument("--miniature", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(examples())
    if unknown:
        parser.error(f"no example {min(unknown)!r}; there are {', '.join(examples())}")
    failed = []
    for name in arguments.names or examples():
        for experiment in load(name):
            if arguments.only in (None, experiment.name):
                if arguments.miniature:
                    miniature(name, experiment)
                    continue
                found = measure(name, experiment)
                results.store(HERE / name, found)
                failed += [f"{name} {experiment.name}: {line}" for line in results.shortcomings(found)]
    if not arguments.miniature:
        results.write_page()
    for line in failed:
        print(line, file=sys.stderr)
    raise SystemExit(1 if failed else 0)


def measure(example: str, experiment: Experiment) -> dict[str, Any]:
    """All runs of an experiment, as `result.json` keeps them."""
    began = time.monotonic()
    name, value = trivial(example, experiment)
    with tempfile.TemporaryDirectory() as temporary:
        runs = dict(told(example, experiment, side_by_side(jobs(example, experiment, Path(temporary)))))
    tuned, from_scratch = ([run for kind, run in runs.items() if kind.startswith(k)] for k in (TUNED, SCRATCH))
    metric = experiment.metric
    return {
        "name": experiment.name,
        "metric": metric,
        "direction": experiment.direction,
        "base": {"what": experiment.before, **summary([run.before[metric] for run in tuned])},
        "trivial": {"what": name, "value": value},
        "scratch": summary([run.after[metric] for run in from_scratch]) if from_scratch else experiment.why_no_scratch,
        "tuned": summary([run.after[metric] for run in tuned]),
        "all_metrics": [dict(run.after) for run in tuned],
        "seeds": list(experiment.seeds),
        "synthetic": experiment.synthetic,
        "pretrained": experiment.pretrained,
        "cpu_seconds_of_a_run": round(statistics.median(run.cpu_seconds for run in tuned), 1),
        "peak_mib": round(statistics.median(run.peak_mib for run in tuned)),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "command": f"python examples/run.py {example} --only {experiment.name}",
        "machine": f"{platform.machine()}, {cores()} cores",
        "date": datetime.date.today().isoformat(),
    }


def jobs(example: str, experiment: Experiment, folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """(recipe, run folder) of every run that the experiment asks for."""
    found = {}
    for seed in experiment.seeds:
        found[f"{TUNED} {seed}"] = recipe(example, experiment, {"train.seed": seed}), folder / f"tuned-{seed}"
        if experiment.scratch is not None:
            document = scratch_recipe(example, experiment, folder / f"model-{seed}", seed)
            found[f"{SCRATCH} {seed}"] = document, folder / f"scratch-{seed}"
    return found


def told(example: str, experiment: Experiment, runs: Iterable[tuple[str, Run]]) -> Iterator[tuple[str, Run]]:
    for kind, run in runs:
        say(example, experiment, kind, run.after)
        yield kind, run


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "values": list(values)}


def miniature(example: str, experiment: Experiment, start: Start | None = None) -> dict[str, Run]:
    """One seed, tuned and from scratch, on what the experiment's `miniature` leaves of the recipe."""
    start = start or pefttool
    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changes = {**experiment.miniature, "train.seed": 1}
        runs["tuned"] = start(recipe(example, experiment, changes), folder / "tuned")
        if experiment.scratch is not None:
            document = scratch_recipe(example, experiment, folder / "model", 1, experiment.miniature)
            runs["scratch"] = start(document, folder / "scratch")
    for name, run in runs.items():
        say(example, experiment, f"miniature, {name}", run.after)
    return runs


def recipe(example: str, experiment: Experiment, changes: Mapping[str, Any]) -> dict[str, Any]:
    from pefttool.config import recipe as recipes
    from pefttool.config import recipe_file

    document = recipes.combine(recipe_file.read(HERE / example / experiment.recipe), {}, ())
    return recipes.combine(document, changes, ())


def scratch_recipe(
    example: str, experiment: Experiment, folder: Path, seed: int, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The recipe for the same model with random weights, all of which train."""
    from pefttool.config import registry
    from pefttool.models import hub

    document = recipe(example, experiment, {**(changes or {}), "train.seed": seed})
    model = hub.resolve(document["model"], registry.build(), weights=True).path
    document |= {"model": str(scratch.make(model, folder, seed)), "adapter": {"name": "full"}}
    document.pop("quantize", None)
    for rate in ("learning_rate", "head_learning_rate"):  # those of an adapter
        document.get("train", {}).pop(rate, None)
    from pefttool.config import recipe as recipes

    return recipes.combine(document, {**(experiment.scratch or {}), **(changes or {})}, ())


def trivial(example: str, experiment: Experiment) -> tuple[str, float]:
    """What it is, and its metric on the rows that the recipe holds out."""
    from pefttool.config import recipe as recipes
    from pefttool.config import registry
    from pefttool.data import corpus, recognition

    known = registry.build()
    resolved, _ = recognition.recognise_task(recipes.resolve(recipe(example, experiment, {}), known), known)
    rows = corpus.load(resolved, known)
    name, function = experiment.trivial
    return name, float(function([row.values for row in rows.train], [row.values for row in rows.eval]))


def say(example: str, experiment: Experiment, what: str, metrics: Mapping[str, float]) -> None:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    print(f"{example} {experiment.name}: {what}: {figures}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
