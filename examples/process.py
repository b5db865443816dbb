"""`pefttool run` on a recipe, in a process of its own; several of them side by side, which share the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parent / "measured.py"
#: Runs at a time: small models gain little from a second core, two of them side by side use both.
SIDE_BY_SIDE = 2


@dataclass(frozen=True)
class Run:
    before: Mapping[str, float]
    after: Mapping[str, float]
    cpu_seconds: float
    peak_mib: float


#: What runs a recipe, and leaves its run folder there.
Start = Callable[[Mapping[str, Any], Path], Run]


def pefttool(document: Mapping[str, Any], out: Path, threads: int | None = None) -> Run:
    """One run, with so many threads (default: pefttool's own choice). Exits with its last words where it fails."""
    import yaml

    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dict(document)), encoding="utf-8")
    command = [sys.executable, str(MEASURED), "run", str(path), "--out", str(out), "--json"]
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"pefttool run {path.name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    cost = json.loads(out.with_suffix(".cost").read_text(encoding="utf-8"))
    return Run(metrics["before"], metrics["after"], **cost)


def cores() -> int:
    return os.cpu_count() or 1


def side_by_side(jobs: Mapping[str, tuple[Mapping[str, Any], Path]]) -> Iterator[tuple[str, Run]]:
    """(name, run) of each (recipe, run folder), in their order, as they end. Where one fails, no more are started."""
    threads = max(1, cores() // SIDE_BY_SIDE)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            begun = {name: pool.submit(pefttool, document, out, threads) for name, (document, out) in jobs.items()}
            for name, run in begun.items():
                yield name, run.result()
        finally:
            pool.shutdown(cancel_futures=True)
