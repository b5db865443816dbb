"""`pefttool resume` as a user types it: after a signal, with two processes, and where something changed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_run import ENVIRONMENT, pefttool

from pefttool.runs import run_folder
from pefttool.testing.models import model_folder
from pefttool.testing.resumption import interrupt

WORDS = ("a", "gem", "of", "film", "two", "hours", "never", "get", "back", "want", "them", "now", "slow", "dull")
SETTINGS = (
    *("--adapter", "lora", "--task", "text-classification", "-o", "device=cpu", "-o", "dtype=float32"),
    *("-o", "train.batch_size=2", "-o", "train.evaluate_every=5", "-o", "train.checkpoint_every=1"),
    *("-o", "train.keep_checkpoints=99", "-o", "adapter.r=2", "-o", "adapter.lora_dropout=0.3"),
    *("-o", "check=files"),
)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pefttool")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 6)), "label": ("no", "yes")[i % 2]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def start(data: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("run", "--model", str(model_folder("encoder")), "--data", str(data), "--out", str(out), *SETTINGS, *more)


def delivered(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / run_folder.ADAPTER).iterdir()}
    metrics = json.loads((folder / run_folder.METRICS).read_text())
    metrics.pop("memory")
    return {**found, "metrics": json.dumps(metrics).encode()}


def test_after_a_signal_and_where_something_changed(data: Path, tmp_path: Path) -> None:
    arguments = ("-o", "train.max_steps=300", "-o", "train.rehearse=false", "-o", "train.keep_checkpoints=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "pefttool", *start(data, tmp_path / "run", *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    events = tmp_path / "run" / run_folder.EVENTS
    while not (events.is_file() and "StepDone" in events.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    last = errors.strip().splitlines()[-1]
    assert last.startswith("SIGTERM after step ") and last.endswith(f"go on with `pefttool resume {tmp_path / 'run'}`")

    rows = data.read_text()
    data.write_text(rows + rows.splitlines(keepends=True)[0])
    refused = pefttool("resume", str(tmp_path / "run"), check=False)
    assert refused.returncode == 2 and "error: data: " in refused.stderr and "--allow-changed" in refused.stderr
    data.write_text(rows)
    pefttool("resume", str(tmp_path / "run"))
    pefttool(*start(data, tmp_path / "whole", *arguments))
    assert delivered(tmp_path / "run") == delivered(tmp_path / "whole")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["step"] for e in lines if e["type"] == "StepDone"] == list(range(1, 301))
    assert len([e for e in lines if e["type"] == "Resumed"]) == 1


def test_with_two_processes(data: Path, tmp_path: Path) -> None:
    """Each draws its own dropout: every rank's generator comes back."""
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}

    def launch(*arguments: str) -> None:
        done = subprocess.run(
            [*TWO, *arguments], capture_output=True, text=True, env=environment, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr

    launch(*start(data, tmp_path / "whole", "-o", "train.max_steps=6"))
    interrupt(tmp_path / "whole", tmp_path / "run", at=2)
    shutil.copy(tmp_path / "whole" / run_folder.RECIPE, tmp_path / "run")
    launch("resume", str(tmp_path / "run"))
    assert delivered(tmp_path / "run") == delivered(tmp_path / "whole")
    state = json.loads((tmp_path / "whole" / "checkpoints" / "step-2" / "state.json").read_text())
    first, second = state["random"]
    assert first != second
