"""One cell of the side-by-side benchmark: a contestant runs a job in a process of its own, and is measured."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import Data, Job

HERE = Path(__file__).parent
#: Held-out rows are looked at before training and after it; these stages are not training.
LOOKS = ("Evaluated",)


@dataclass(frozen=True)
class Measured:
    """What one run gives.

    seconds      training: from its start to the end of the last step, without evaluations; features of a frozen
                 backbone are part of it, whenever they are computed
    first_step   seconds from the start of the process to the start of the first optimiser step, without rehearsal
    wall         seconds of the whole process: start, training, evaluation, saving
    cpu          CPU seconds of the whole process
    peak         the most resident memory of the process, MiB
    tokens       real tokens, without padding, of all steps; `trained` those with a loss (rows, for a classifier)
    quality      held-out loss a token, or accuracy, at the end
    """

    seconds: float
    first_step: float
    wall: float
    cpu: float
    peak: float
    steps: int
    rows: int
    tokens: int
    trained: int
    quality: float

    def speed(self, unit: str) -> float:
        """Real tokens, or rows, a second of training."""
        return (self.tokens if unit == "tokens" else self.rows) / self.seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def peer(job: Job, data: Data, model: str, seed: int, tuned: bool) -> Measured:
    """transformers.Trainer + peft (+ bitsandbytes)."""
    given = {"job": job.name, "train": str(data.train), "eval": str(data.eval), "model": model}
    ran = _run([sys.executable, str(HERE / "peer.py"), json.dumps({**given, "seed": seed, "tuned": tuned})])
    found = json.loads(ran.output.splitlines()[-1])
    found["first_step"] -= ran.began
    return Measured(wall=ran.wall, cpu=ran.cpu, peak=ran.peak, **found)


def pefttool(job: Job, data: Data, seed: int, extra: Sequence[str] = (), off: Sequence[str] = ()) -> Measured:
    """`pefttool run`; with `off`, through `rung.py`, which leaves those techniques out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        entry = [str(HERE / "rung.py"), ",".join(off)] if off else ["-m", "pefttool"]
        command = [sys.executable, *entry, "run", "--data", str(data.train), "--eval-data", str(data.eval)]
        command += ["--out", str(out), "--json", *job.pefttool(), "-o", f"train.seed={seed}", *extra]
        ran = _run(command)
        events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    found = read_events(events, job, ran.began)
    return Measured(wall=ran.wall, cpu=ran.cpu, peak=ran.peak, **found)


def read_events(events: Sequence[Mapping[str, Any]], job: Job, began: float) -> dict[str, Any]:
    """What a run's own record says of its training."""
    steps = [event for event in events if event["type"] == "StepDone"]
    started = next(event for event in events if event["type"] == "TrainStarted")
    ready = next(event for event in events if event["type"] == "DataReady")
    finished = next(event for event in events if event["type"] == "RunFinished")
    looked = sum(
        event["monotonic"] - before["monotonic"]
        for before, event in itertools.pairwise(events)
        if event["type"] in LOOKS and event["monotonic"] < steps[-1]["monotonic"]
    )
    epochs = job.epochs
    return {
        "seconds": steps[-1]["monotonic"] - started["monotonic"] - looked,
        "first_step": steps[0]["time"] - steps[0]["seconds"] - began,
        "steps": len(steps),
        "rows": sum(step["rows"] for step in steps),
        "tokens": sum(step["tokens"] for step in steps),
        "trained": ready["trained_tokens"] * epochs,
        "quality": finished["after"][job.metric],
    }


@dataclass(frozen=True)
class Ran:
    output: str
    began: float
    wall: float
    cpu: float
    peak: float


def _run(command: Sequence[str]) -> Ran:
    """Run to the end. Raises SystemExit with what it said where it failed."""
    began = time.time()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, which `getrusage` mixes with others'
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.time() - began
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{errors.read()[-4000:]}")
        unit = 1024 if sys.platform != "darwin" else 1024 * 1024
        return Ran(output.read(), began, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)
