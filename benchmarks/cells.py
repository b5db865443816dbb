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
FEATURES, REHEARSAL = "features", "rehearsal"


@dataclass(frozen=True)
class Measured:
    """What one run gives.

    seconds      of the timed steps, without evaluations. The first step warms up and is not timed, on either side;
                 where the backbone is frozen all steps are, and the computation of the training rows' features
    first_step   seconds from the start of the process to the start of the first optimiser step, without rehearsal
    timed        real tokens, or rows, of the timed steps
    wall         seconds of the whole process: start, training, evaluation, saving
    cpu          CPU seconds of the whole process
    peak         the most resident memory of the process, MiB
    tokens       real tokens, without padding, of all steps; `trained` those with a loss (rows, for a classifier)
    quality      held-out loss a token, or accuracy, at the end
    """

    seconds: float
    first_step: float
    timed: int
    wall: float
    cpu: float
    peak: float
    steps: int
    rows: int
    tokens: int
    trained: int
    quality: float

    @property
    def speed(self) -> float:
        """Real tokens, or rows, a second of training."""
        return self.timed / self.seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def peer(job: Job, data: Data, model: str, seed: int, tuned: bool) -> Measured:
    """transformers.Trainer + peft (+ bitsandbytes)."""
    given = {"job": job.name, "train": str(data.train), "eval": str(data.eval), "model": model}
    ran = _run([sys.executable, str(HERE / "peer.py"), json.dumps({**given, "seed": seed, "tuned": tuned})])
    steps = json.loads(ran.output.splitlines()[-1])
    warm = 0 if job.kind == "head" else 1
    sizes = steps["tokens" if job.unit == "tokens" else "rows"]
    return Measured(
        seconds=steps["end"][-1] - (steps["end"][warm - 1] if warm else steps["began"]),
        first_step=steps["first_step"] - ran.began,
        timed=sum(sizes[warm:]),
        wall=ran.wall,
        cpu=ran.cpu,
        peak=ran.peak,
        steps=len(steps["end"]),
        rows=sum(steps["rows"]),
        tokens=sum(steps["tokens"]),
        trained=steps["trained"],
        quality=steps["quality"],
    )


def pefttool(
    job: Job, data: Data, model: str, seed: int, extra: Sequence[str] = (), off: Sequence[str] = ()
) -> Measured:
    """`pefttool run`; with `off`, through `rung.py`, which leaves those techniques out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        entry = [str(HERE / "rung.py"), ",".join(off)] if off else ["-m", "pefttool"]
        command = [sys.executable, *entry, "run", "--data", str(data.train), "--eval-data", str(data.eval)]
        command += ["--out", str(out), "--json", *job.pefttool(model), "-o", f"train.seed={seed}", *extra]
        # A cache of its own: nothing was encoded, and no features computed, in an earlier round.
        ran = _run(command, PEFTTOOL_CACHE=str(Path(folder) / "cache"))
        events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    found = read_events(events, job, ran.began)
    return Measured(wall=ran.wall, cpu=ran.cpu, peak=ran.peak, **found)


def read_events(events: Sequence[Mapping[str, Any]], job: Job, began: float) -> dict[str, Any]:
    """What a run's own record says of its training."""
    steps = [event for event in events if event["type"] == "StepDone"]
    started, ready, finished = (
        next(event for event in events if event["type"] == kind)
        for kind in ("TrainStarted", "DataReady", "RunFinished")
    )
    frozen = job.kind == "head"
    start, timed = (started, steps) if frozen else (steps[0], steps[1:])
    # The features of held-out rows are computed within the first look, which is theirs from the last step on.
    told = [event for event in events if event["type"] != "Progress"]
    looked = sum(
        event["monotonic"] - before["monotonic"]
        for before, event in itertools.pairwise(told)
        if event["type"] in LOOKS and start["monotonic"] < event["monotonic"] < steps[-1]["monotonic"]
    )
    # Features are computed as their rows come: those of the rehearsed batch before the first step, the others in steps.
    early = itertools.takewhile(lambda event: event["type"] != "TrainStarted", events)
    features = _spent(list(early), FEATURES, ready["train_rows"]) if frozen else 0.0
    return {
        "seconds": steps[-1]["monotonic"] - start["monotonic"] - looked + features,
        "first_step": steps[0]["time"] - steps[0]["seconds"] - began - (_spent(events, REHEARSAL) - features),
        "timed": sum(step["tokens" if job.unit == "tokens" else "rows"] for step in timed),
        "steps": len(steps),
        "rows": sum(step["rows"] for step in steps),
        "tokens": sum(step["tokens"] for step in steps),
        "trained": ready["trained_tokens"] * job.epochs,
        "quality": finished["after"][job.metric],
    }


def _spent(events: Sequence[Mapping[str, Any]], what: str, total: int = 1) -> float:
    """Seconds of the work on `total` that is called `what`: from the event before its first report to its last one."""
    reports = [i for i, e in enumerate(events) if e["type"] == "Progress" and (e["what"], e["total"]) == (what, total)]
    return events[reports[-1]]["monotonic"] - events[max(0, reports[0] - 1)]["monotonic"] if reports else 0.0


@dataclass(frozen=True)
class Ran:
    output: str
    began: float
    wall: float
    cpu: float
    peak: float


def _run(command: Sequence[str], **environment: str) -> Ran:
    """Run to the end. Raises SystemExit with what it said where it failed."""
    began = time.time()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, which `getrusage` mixes with others'
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.time() - began
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{errors.read()[-4000:]}")
        unit = 1024 if sys.platform != "darwin" else 1024 * 1024
        return Ran(output.read(), began, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)
