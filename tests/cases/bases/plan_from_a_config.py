"""The memory that is planned from a config.json alone, against the plan of the whole model folder."""

from __future__ import annotations

import json
import shutil
from typing import Any

from case_bench import Bench

#: Models, the task that is meant, and an option of it that makes no difference to a plan.
MODELS = {
    "base-whisper": ("speech-recognition", []),
    "base-gemma3": ("chat", []),
    "base-mixtral": ("causal-lm", ["-o", "task.text_column=body"]),
}
PLANNED = ("task", "peak_bytes", "parts", "outside", "micro_batch", "parameters")


def check(bench: Bench) -> None:
    for name, (task, option) in MODELS.items():
        alone = bench.folder / name
        alone.mkdir()
        shutil.copy(bench.model(name) / "config.json", alone)
        whole = _plan(bench, str(bench.model(name)))
        assert whole["task"] == task
        found = _plan(bench, str(alone), *option)
        assert {key: found[key] for key in PLANNED} == {key: whole[key] for key in PLANNED}, name
    wrong = bench.pefttool("plan", "--adapter", "lora", "--model", str(alone), "-o", "task.text_colum=body")
    assert wrong.code == 2 and "did you mean 'text_column'" in wrong.err, wrong.text


def _plan(bench: Bench, model: str, *more: str) -> Any:
    answer = bench.pefttool("plan", "--adapter", "lora", "--model", model, "--for", "cuda:6GiB", "--json", *more)
    assert answer.code == 0, answer.text
    return json.loads(answer.out)
