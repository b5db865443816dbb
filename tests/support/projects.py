"""A folder as users have them: a table and a model in it, named by relative paths, and runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import case_models
from case_bench import QUICK, Bench

RUN = Path("runs/first")
ROWS = [f"{'broken' if n % 2 else 'late'} number {n},{'repair' if n % 2 else 'delivery'}" for n in range(24)]


def make(bench: Bench, *more: str) -> Path:
    """`bench.folder/project` with tickets.csv, model/, and a run in runs/first; the working directory is another."""
    folder = bench.folder / "project"
    folder.mkdir()
    (folder / "tickets.csv").write_text("\n".join(["text,label", *ROWS]) + "\n", encoding="utf-8")
    shutil.copytree(case_models.folder("bert"), folder / "model")
    bench.monkeypatch.chdir(folder)
    given = ("--adapter", "lora", "--model", "model", "--data", "tickets.csv", "--out", RUN)
    answer = bench.pefttool("run", *given, *QUICK, *more)
    assert answer.code == 0, answer.text
    elsewhere(bench)
    return folder


def elsewhere(bench: Bench) -> None:
    other = bench.folder / "elsewhere"
    other.mkdir(exist_ok=True)
    bench.monkeypatch.chdir(other)
