"""Every registered adapter, task and quantizer: a resumed run is the undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_samples import OTHER_KINDS, SAMPLES

from pefttool.api.errors import Refused
from pefttool.config import registry as registries
from pefttool.testing.models import model_folder
from pefttool.testing.resumption import check_resume

pytestmark = pytest.mark.usefixtures("own_cache")
REGISTRY = registries.build()
#: Several steps an epoch, with an accumulation that is not full at its end, and an evaluation between two of them.
TRAIN = {"batch_size": 2, "gradient_accumulation": 2, "max_steps": 4, "evaluate_every": 3, "sequence_length": 64}
PAIRS = [(task, kind) for task in REGISTRY.tasks for kind in (SAMPLES[task].kind, *OTHER_KINDS.get(task, ()))]


def recipe(folder: Path, task: str, kind: str, adapter: str, **more: Any) -> dict[str, Any]:
    """The same few rows on both sides: what is asked here is not what they teach."""
    rows = SAMPLES[task].rows(folder)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": str(model_folder(kind)),
        "task": task,
        "adapter": adapter,
        "device": "cpu",
        "dtype": "float32",
        "data": {"train": str(path), "eval": str(path), "format": "jsonl", "allow_overlap": True},
        "train": TRAIN,
        "generation": {"max_new_tokens": 3, "do_sample": False},
        **more,
    }


@pytest.mark.parametrize("adapter", REGISTRY.adapters)
@pytest.mark.parametrize(("task", "kind"), PAIRS)
def test_every_adapter_on_every_task(task: str, kind: str, adapter: str, tmp_path: Path) -> None:
    given = recipe(tmp_path, task, kind, adapter)
    at = 1 + sum(map(ord, task + adapter)) % 3
    try:
        check_resume(REGISTRY, given, tmp_path, at, f"adapter {adapter!r} for task {task!r}")
    except Refused as refused:  # that it says why is the matrix's to see
        pytest.skip(refused.complaints[0])


@pytest.mark.parametrize("quantizer", REGISTRY.quantizers)
@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
@pytest.mark.parametrize("adapter", [name for name in REGISTRY.adapters if not REGISTRY.adapters[name].trains_base])
def test_every_quantizer(quantizer: str, task: str, adapter: str, tmp_path: Path) -> None:
    given = recipe(tmp_path, task, SAMPLES[task].kind, adapter, quantize=quantizer)
    check_resume(REGISTRY, given, tmp_path, 2, f"{quantizer!r} with {adapter!r} for {task!r}")
