"""Whole runs as a user starts them: `pefttool` in a process of its own, on the real example models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: One thread: two commands give the same bits, and a busy neighbour does not stall every barrier between threads.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PEFTTOOL_TRACEBACK": ""}
CLASSIFY = ("--task", "text-classification")
SMALL = (
    *("-o", "data.max_train_rows=64", "-o", "data.max_eval_rows=48"),
    *("-o", "train.batch_size=8", "-o", "train.epochs=1"),
)
CHAT = (
    *(
        "--task",
        "chat",
        "-o",
        "data.max_train_rows=12",
        "-o",
        "data.max_eval_rows=8",
        "-o",
        "generation.max_new_tokens=8",
    ),
    *("-o", "train.batch_size=4", "-o", "train.epochs=1", "-o", "train.rehearse=false"),
)
EXACT = ("-o", "dtype=float32")


@dataclass(frozen=True)
class Finished:
    """What a run left: its folder and the JSON that it printed."""

    folder: Path
    result: dict[str, Any]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def pefttool(
    *arguments: str, cwd: Path | None = None, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pefttool", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        timeout=600,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode == 0, done.stderr
    return done


def run(out: Path, *arguments: str, check: str = "files") -> Finished:
    """Not loaded again in a process of its own, as it is by default: that takes longer than most of these runs."""
    done = pefttool("run", "--out", str(out), "--json", *arguments, "-o", f"check={check}")
    return Finished(out, json.loads(done.stdout))


def clean_python(code: str, *arguments: str) -> str:
    """Standard output of `code` in a process that must not have imported pefttool."""
    guarded = f"{code}\nimport sys\nassert not [m for m in sys.modules if m.startswith('pefttool')]\n"
    done = subprocess.run(
        [sys.executable, "-c", guarded, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
