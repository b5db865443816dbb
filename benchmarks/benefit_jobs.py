"""The tasks of the benefits benchmark, each run tuned, fully tuned and from scratch, and what a run is worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

TUNED, FULL, SCRATCH = "LoRA", "all weights", "from scratch"


@dataclass(frozen=True)
class Job:
    """`recipe` is for the tuned run; `ways` are changes of it for the others, `scratch` for the one from scratch.

    `before` is what the model before training stands for, `quick` makes it a matter of seconds.
    """

    title: str
    about: str
    metric: str
    direction: Literal["max", "min"]
    recipe: Mapping[str, Any]
    ways: Mapping[str, Mapping[str, Any]]
    scratch: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    before: str = "zero-shot"

    def as_good(self, value: float, goal: float) -> bool:
        return value >= goal if self.direction == "max" else value <= goal


@dataclass(frozen=True)
class Outcome:
    """One run. `curve` has (step, seconds of training until then, metric) of every evaluation.

    `saved` is the size of what is delivered, MiB.
    """

    before: float
    after: float
    trainable: int
    steps: int
    rows: int
    epochs: float
    curve: tuple[tuple[int, float, float], ...]
    cpu: float
    peak: float
    saved: float

    def best(self, job: Job) -> float:
        values = [value for _, _, value in self.curve]
        return max(values) if job.direction == "max" else min(values)

    def reached(self, job: Job, goal: float) -> tuple[int, float] | None:
        """(steps, seconds of training) after which an evaluation was first as good as `goal`."""
        return next(((step, seconds) for step, seconds, value in self.curve if job.as_good(value, goal)), None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


JOBS = {
    "sentiment": Job(
        title="Sentiment of film reviews: MiniLM (23M parameters)",
        about="300 held out",
        metric="accuracy",
        direction="max",
        recipe={
            "model": "example:all-minilm-l6-v2",
            "adapter": {"name": "lora"},
            "data": {"train": "example:movie-snippets", "max_train_rows": 640, "max_eval_rows": 300},
            "train": {"epochs": 3, "evaluate_every": 10},
        },
        ways={"only the head": {"adapter": {"name": "head"}}, FULL: {"adapter": {"name": "full"}}},
        scratch={"train.learning_rate": 5e-4, "train.head_learning_rate": 5e-4},
        quick={"data.max_train_rows": 64, "data.max_eval_rows": 32, "train.epochs": 1, "train.evaluate_every": 1},
        before="an untrained head",
    ),
    "pictures": Job(
        title="Kinds of clothes: DINOv2 ViT-S (22M parameters)",
        about="300 held out; 56 x 56 pixels",
        metric="accuracy",
        direction="max",
        recipe={
            "model": "example:dinov2-small",
            "adapter": {"name": "lora"},
            "task": {"name": "image-classification", "size": 56},
            "data": {"train": "example:fashion-mnist", "max_train_rows": 400, "max_eval_rows": 300},
            "train": {"epochs": 2, "evaluate_every": 20},
        },
        ways={"only the head": {"adapter": {"name": "head"}}},
        scratch={"train.learning_rate": 3e-4},
        quick={"data.max_train_rows": 20, "data.max_eval_rows": 10, "train.epochs": 1, "train.evaluate_every": 1},
        before="an untrained head",
    ),
    "chat": Job(
        title="Conversations: SmolLM2 (135M parameters)",
        about="24 held out; the loss is a token's",
        metric="loss",
        direction="min",
        recipe={
            "model": "example:smollm2-135m-instruct",
            "task": {"name": "chat"},
            "adapter": {"name": "lora"},
            "data": {"train": "example:chatterbot-english", "max_train_rows": 96, "max_eval_rows": 24},
            "train": {"epochs": 1, "evaluate_every": 3, "rehearse": False},
            "generation": {"max_new_tokens": 8},
        },
        ways={},
        scratch={"train.learning_rate": 5e-4},
        quick={"data.max_train_rows": 8, "data.max_eval_rows": 4, "train.evaluate_every": 1},
    ),
}


def measure(job: Job, folder: Path, seed: int, quick: bool) -> dict[str, Outcome]:
    """Every way of the job, the tuned one first and the one from scratch last; runs stay in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {**(job.quick if quick else {}), "train.seed": seed}
    found = {}
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        TUNED: lambda: changed(job.recipe, changes),
        **{way: (lambda way=way: changed(job.recipe, {**job.ways[way], **changes})) for way in job.ways},  # type: ignore[misc]
        SCRATCH: lambda: _from_scratch(job, changes, folder, seed),
    }
    for way, document in ways.items():
        found[way] = run(document(), folder / way.replace(" ", "-"), job.metric)
        print(f"{job.title}, {way}: {job.metric} {found[way].after:.4f}", file=sys.stderr, flush=True)
    return found


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    from pefttool.config import recipe as recipes

    return recipes.combine(recipe, changes, ())


def _from_scratch(job: Job, changes: Mapping[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import scratch

    from pefttool.config import registry
    from pefttool.models import hub

    model = hub.resolve(str(job.recipe["model"]), registry.build(), weights=True).path
    made = scratch.make(model, folder / "random", seed)
    return changed({**job.recipe, "model": str(made), "adapter": {"name": "full"}}, {**job.scratch, **changes})


def run(document: Mapping[str, Any], out: Path, metric: str) -> Outcome:
    """`pefttool run` on this recipe, in a process of its own and with a cache of its own for what it computes."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(dict(document)), encoding="utf-8")
    command = [sys.executable, "-m", "pefttool", "run", str(recipe), "--out", str(out), "--json"]
    command += ["-o", "check=files"]
    with out.with_suffix(".err").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, which `getrusage` mixes with others'
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{errors.read()[-3000:]}")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    weights = (out / "adapter").rglob("*.safetensors")
    return Outcome(
        before=metrics["before"][metric],
        after=metrics["after"][metric],
        cpu=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss / unit,
        saved=sum(path.stat().st_size for path in weights) / (1 << 20),
        **read_events(events, metric),
    )


def read_events(events: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """What a run's own record says of its training."""
    started = next(event for event in events if event["type"] == "TrainStarted")
    ready = next(event for event in events if event["type"] == "DataReady")
    seconds, epochs, steps, curve = 0.0, 0.0, 0, []
    for event in events:
        if event["type"] == "StepDone":
            seconds, epochs, steps = seconds + event["seconds"], event["epoch"], steps + 1
        elif event["type"] == "Evaluated":
            curve.append((steps, seconds, event["metrics"][metric]))
    return {
        "trainable": started["trainable_parameters"],
        "steps": steps,
        "rows": ready["train_rows"],
        "epochs": round(epochs, 2),
        "curve": tuple(curve),
    }
