"""A command reads its data once: its beginning, to know what it is, and then all of it; and asks each format once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pefttool.cli.entry import execute
from pefttool.testing.models import model_folder
from pefttool_text.formats import JsonLines

QUICK = ("train.max_steps=4", "train.batch_size=4", "train.rehearse=false", "train.checkpoint_every=2", "check=files")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the format was asked, its reading begun, and its reading come to the end."""
    counts: Counter[str] = Counter()
    sniff, read = JsonLines.sniff, JsonLines.read

    def sniffing(self: Any, path: Path) -> str | None:
        counts["asked"] += 1
        return sniff(self, path)

    def reading(self: Any, path: Path, options: Any) -> Iterator[Any]:
        counts["begun"] += 1
        yield from read(self, path, options)
        counts["whole"] += 1

    monkeypatch.setattr(JsonLines, "sniff", sniffing)
    monkeypatch.setattr(JsonLines, "read", reading)
    return counts


def test_run_run_within_a_budget_and_resume(tmp_path: Path, counted: Counter[str]) -> None:
    data = tmp_path / "rows.jsonl"
    rows = ({"text": f"row {i} is fine", "label": ("good", "bad")[i % 2]} for i in range(200))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [part for option in QUICK for part in ("-o", option)]
    command = ["run", "--adapter", "lora", "--model", str(model_folder("encoder")), "--data", str(data), *options]
    once = {"asked": 1, "begun": 2, "whole": 1}
    assert execute([*command, "--out", str(tmp_path / "run")]) == 0
    assert counted == once
    counted.clear()
    assert execute([*command, "--out", str(tmp_path / "small"), "-o", "memory.budget=4GiB"]) == 0
    assert counted == once
    counted.clear()
    (tmp_path / "run" / "metrics.json").unlink()  # as if the process had been killed before it wrote them
    assert execute(["resume", str(tmp_path / "run")]) == 0
    assert counted == {"asked": 1, "begun": 2, "whole": 1}
