"""Held-out quality of every adapter with the shipped defaults: the table in docs/adapters.md.

    python benchmarks/adapters.py --task text-classification --seeds 0 1 2 --write docs/adapters.md

Each cell is a whole `pefttool run` in a process of its own, on the task's built-in example.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADAPTERS = ("lora", "full", "head", "prefix")


def run(adapter: str, task: str, seed: int, extra: list[str]) -> dict[str, float]:
    """Metrics after training, trainable share and minutes of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "pefttool", "run", "--adapter", adapter, "--task", task, "--out", str(out)]
        command += ["--json", "-o", f"train.seed={seed}", *extra]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        started = next(e for e in events if e["type"] == "TrainStarted")
        finished = next(e for e in events if e["type"] == "TrainFinished")
        after = json.loads(done.stdout)["after"]
    return {
        **after,
        "trainable": started["trainable_parameters"],
        "training_seconds": finished["seconds"],
        "seconds": time.monotonic() - began,
    }


def table(results: dict[str, list[dict[str, float]]], metric: str) -> str:
    seeds = len(next(iter(results.values())))
    lines = [
        f"| adapter | median {metric} | {seeds} seeds | trainable parameters | training |",
        "|---|---|---|---|---|",
    ]
    for adapter, runs in results.items():
        values = [r[metric] for r in runs]
        spread = ", ".join(f"{v:.3f}" for v in values)
        minutes = statistics.median(r["training_seconds"] for r in runs) / 60
        trainable = int(runs[0]["trainable"])
        median = statistics.median(values)
        lines.append(f"| {adapter} | **{median:.3f}** | {spread} | {trainable:,} | {minutes:.1f} min |")
    return "\n".join(lines)


def write(path: Path, task: str, text: str) -> None:
    """Replace what stands between this task's markers in a Markdown file."""
    start, end = f"<!-- {task}: made by benchmarks/adapters.py -->", f"<!-- end of {task} -->"
    document = path.read_text(encoding="utf-8")
    before, _, rest = document.partition(start)
    _, _, after = rest.partition(end)
    if not rest or end not in rest:
        raise SystemExit(f"{path} lacks the markers {start} and {end}")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="text-classification")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS))
    parser.add_argument("--write", type=Path, default=None, help="Markdown file whose table is replaced")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="passed on to `pefttool run`")
    arguments = parser.parse_args()
    extra = [part for override in arguments.overrides for part in ("-o", override)]
    results: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:  # alternating, so that a noisy minute does not hit one adapter only
        for adapter in arguments.adapters:
            found = run(adapter, arguments.task, seed, extra)
            results.setdefault(adapter, []).append(found)
            print(f"{adapter} seed {seed}: {found}", file=sys.stderr, flush=True)
    command = " ".join(["python", "benchmarks/adapters.py", *sys.argv[1:]])
    where = f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    text = f"{table(results, arguments.metric)}\n\n*Measured* ({where}) with `{command}`."
    print(text)
    if arguments.write:
        write(arguments.write, arguments.task, text)


if __name__ == "__main__":
    main()
