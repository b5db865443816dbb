"""Every registered adapter on every registered task: it works, or the plan says what to use instead."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from task_samples import OTHER_KINDS, SAMPLES, Rows

from pefttool.config import registry as registries
from pefttool.testing.matrix import Outcome, try_pair

REGISTRY = registries.build()
PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"


@cache
def rows(task: str) -> Rows:
    return SAMPLES[task].rows(Path(tempfile.mkdtemp(prefix=f"pefttool-{task}-")))


def kinds(tasks: Iterable[str]) -> list[tuple[str, str]]:
    return [(task, kind) for task in tasks for kind in (SAMPLES[task].kind, *OTHER_KINDS.get(task, ()))]


@cache
def outcome(task: str, kind: str, adapter: str) -> Outcome:
    return try_pair(REGISTRY, task, adapter, rows(task), kind)


@pytest.mark.parametrize("adapter", REGISTRY.adapters)
@pytest.mark.parametrize(("task", "kind"), kinds(REGISTRY.tasks))
def test_pair(task: str, kind: str, adapter: str) -> None:
    outcome(task, kind, adapter)


@pytest.mark.parametrize("adapter", REGISTRY.adapters)
@pytest.mark.parametrize(("task", "kind"), kinds(REGISTRY.tasks))
def test_what_is_delivered_in_bfloat16_is_what_was_judged(task: str, kind: str, adapter: str) -> None:
    """As most runs compute, to the bit."""
    try_pair(REGISTRY, task, adapter, rows(task), kind, {"dtype": "bfloat16"})


@pytest.mark.parametrize("adapter", REGISTRY.adapters)
@pytest.mark.parametrize("quantizer", REGISTRY.quantizers)
@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
def test_and_on_quantised_weights(task: str, quantizer: str, adapter: str) -> None:
    try_pair(REGISTRY, task, adapter, rows(task), SAMPLES[task].kind, {"dtype": "bfloat16", "quantize": quantizer})


@pytest.mark.parametrize("checkpointing", ["non-reentrant", "reentrant"])
@pytest.mark.parametrize("task", ["causal-lm", "text-classification", "seq2seq", "image-classification"])
def test_a_prefix_with_blocks_that_compute_again(task: str, checkpointing: str) -> None:
    """Beyond what peft's can: packed where the task can, and peft's files where peft could use them."""
    settings = {"gradient_checkpointing": checkpointing, "packing": True if task == "causal-lm" else None}
    found = try_pair(REGISTRY, task, "prefix", rows(task), SAMPLES[task].kind, {"train": settings})
    assert found.works and found.peft == (task in ("causal-lm", "text-classification"))


def test_the_page_says_what_the_suite_finds() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", PAGE.with_name("generate.py"))
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    tasks, adapters = (generate.ours(of) for of in (REGISTRY.tasks, REGISTRY.adapters))
    found = [outcome(task, kind, adapter) for (task, kind), adapter in product(kinds(tasks), adapters)]
    assert PAGE.read_text(encoding="utf-8") == generate.matrix_page(found), "run `make docs`"
