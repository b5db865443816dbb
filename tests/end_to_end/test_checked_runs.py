"""The command `pefttool run` ends with the check in a clean process, and fails where that finds something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_runs import Runs
from real_run import CLASSIFY, SMALL, run
from terminal import Terminal

from pefttool.api.errors import ModelError
from pefttool.config.registry import Registry
from pefttool.export import check, clean_process


def test_a_run_as_a_user_starts_it_is_checked(tmp_path: Path) -> None:
    finished = run(tmp_path / "r", "--adapter", "lora", *CLASSIFY, *SMALL, "-o", "train.max_steps=3", check="process")
    found = finished.result["check"]
    assert found == finished.json("check.json")
    assert found["clean_process"]["max_difference"] / max(1, found["effect"]) < 0.1
    assert (
        found["effect"] > 0 and found["heads"] == ["classifier"] and set(found["versions"]) == {"transformers", "peft"}
    )


def test_what_the_check_finds_is_said_after_the_results(
    registry: Registry, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(registry, tmp_path)
    recipe = runs["lora-classes"] / "recipe.yaml"

    def wrong(source: str, folder: Path) -> clean_process.Clean:
        raise ModelError("nothing works without pefttool")

    monkeypatch.setattr(clean_process, "run", wrong)
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    arguments = ("run", str(recipe), "-o", "check=process", "--json", "--out")
    code, out, err = terminal.run(*arguments, str(tmp_path / "again"))
    assert code == 1 and err[-1] == "error: nothing works without pefttool"
    assert set(json.loads(out)) == {"folder", "adapter", "before", "after", "improved", "samples"}
    monkeypatch.setattr(check, "free_memory", lambda device: 1 << 20)
    code, out, _ = terminal.run(*arguments, str(tmp_path / "third"))
    assert code == 0 and "are free: `pefttool check" in json.loads(out)["check"]
