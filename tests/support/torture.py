"""Runs are killed with SIGKILL, at random instants and inside the writing of checkpoints, and gone on with.

    python tests/support/torture.py --kills 200

Every run must end as the undisturbed one did, bit for bit, however often it was killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from disk import Record, recorded

from pefttool import run as stages
from pefttool.cli.entry import execute
from pefttool.runs import checkpoint, run_folder
from pefttool.testing.models import model_folder

WORDS = ("a", "gem", "of", "film", "two", "hours", "never", "get", "back", "want", "them", "now", "slow", "dull")
RECIPE = (
    *("--adapter", "lora", "--task", "text-classification"),
    *("-o", "device=cpu", "-o", "dtype=float32", "-o", "train.checkpoint_every=1", "-o", "train.max_steps=12"),
    *("-o", "train.evaluate_every=4", "-o", "train.batch_size=4", "-o", "train.rehearse=false", "-o", "adapter.r=2"),
    *("-o", "check=files"),
)


class Died(AssertionError):
    """A run ended in another way than by being killed."""


@dataclass
class Killer(Record):
    """Kills its own process at the call number `crash_at` below the run's checkpoints."""

    def note(self, name: str, path: Any, data: bytes = b"", target: Any = "") -> bool:
        if not str(path).startswith(str(self.root)):
            return False
        if len(self.operations) == self.crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().note(name, path, b"", target)


@dataclass
class Torture:
    """`kills` so far; `inside` of them while a checkpoint was written; `ends` are runs that reached their end."""

    root: Path
    seed: int = 0
    kills: int = 0
    inside: int = 0
    ends: int = 0
    started_over: int = 0
    resumed: int = 0
    seconds: float = 0.0
    calls: int = 0
    expected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.data = self.root / "rows.jsonl"
        rows = [
            {"text": " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 6)), "label": ("no", "yes")[i % 2]}
            for i in range(30)
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.model = model_folder("encoder")

    def prepare(self) -> None:
        """The undisturbed run: what it ends with, how long it takes, how often it calls the disk."""
        folder = self.root / "undisturbed"
        record = self.root / "calls"

        def counted() -> int:
            with recorded(Record(folder / run_folder.CHECKPOINTS)) as seen:
                code = self.run(folder)
            record.write_text(str(len(seen.operations)), encoding="utf-8")
            return code

        began = time.monotonic()
        status = self.fork(counted)
        self.seconds = time.monotonic() - began
        self.require(status == 0, f"the undisturbed run ended with {status}")
        self.expected, self.calls = _hashes(folder), int(record.read_text())

    def run(self, folder: Path) -> int:
        return execute(["run", *RECIPE, "--model", str(self.model), "--data", str(self.data), "--out", str(folder)])

    def until(self, kills: int) -> None:
        """Kill that often. Raises Died where a run does not survive it."""
        while self.kills < kills:
            folder = self.root / f"run-{self.ends}"
            while not self.once(folder):
                pass
            self.ends += 1
            print(f"{self.kills} kills, {self.ends} runs ended", flush=True)
            found = _hashes(folder)
            self.require(found == self.expected, f"{folder} ended with other files: {found} and not {self.expected}")

    def once(self, folder: Path) -> bool:
        """Start or go on, and kill; whether the run came to its end before."""
        newest, _ = checkpoint.newest(folder / run_folder.CHECKPOINTS)
        self.resumed += newest is not None
        self.started_over += newest is None and folder.exists()
        by_call = self.draw.random() < 0.5
        at = self.draw.randrange(max(1, self.calls // 2)) if by_call else None
        delay = None if by_call else self.draw.uniform(0.05, 1.0) * self.seconds

        def go() -> int:
            with recorded(Killer(folder / run_folder.CHECKPOINTS, crash_at=at)):
                return self.run(folder) if newest is None else execute(["resume", str(folder)])

        status = self.fork(go, delay)
        if status == -signal.SIGKILL:
            self.kills += 1
            self.inside += by_call
            return False
        self.require(status == 0, f"{folder}: ended with {status}: {(self.root / 'output').read_text()[-1000:]}")
        return True

    def fork(self, work: Callable[[], int], delay: float | None = None) -> int:
        """Do it in a child process, killed after `delay` seconds; its exit code, or minus the signal's number."""
        child = os.fork()
        if child == 0:
            output = os.open(self.root / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                code = work()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                code = 99
            os._exit(code)
        ends = None if delay is None else time.monotonic() + delay
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if ends is not None and time.monotonic() >= ends:
                os.kill(child, signal.SIGKILL)
                ends = None
            time.sleep(0.002)

    @staticmethod
    def require(holds: bool, message: str) -> None:
        if not holds:
            raise Died(message)

    def __str__(self) -> str:
        lines = (
            f"{self.kills} kills survived, {self.inside} of them inside the writing of a checkpoint",
            f"{self.resumed} resumptions, {self.started_over} fresh starts before a first checkpoint",
            f"{self.ends} runs ended, all with the files of the undisturbed one",
        )
        return "; ".join(lines)


def _hashes(folder: Path) -> dict[str, str]:
    """What a run delivers; its metrics without what depends on the machine."""
    files = {p.name: p.read_bytes() for p in sorted((folder / run_folder.ADAPTER).iterdir())}
    metrics = json.loads((folder / run_folder.METRICS).read_text(encoding="utf-8"))
    metrics.pop("memory", None)
    files[run_folder.METRICS] = json.dumps(metrics, sort_keys=True).encode()
    last = max((folder / run_folder.CHECKPOINTS).glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
    files[last.name] = (last / checkpoint.MANIFEST).read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def torture(kills: int, seed: int, root: Path) -> Torture:
    """Raises Died at the first run that does not survive."""
    import accelerate
    import peft
    import transformers

    assert accelerate and peft and transformers and stages, "imported once, before the processes are forked"
    torch.set_num_threads(1)
    os.environ["PEFTTOOL_CACHE"] = str(root / "cache")
    found = Torture(root, seed)
    found.prepare()
    found.until(kills)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        print(torture(arguments.kills, arguments.seed, Path(scratch)))
