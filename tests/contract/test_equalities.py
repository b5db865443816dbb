"""Whole runs that must not differ, with every registered adapter: what is kept, and what is streamed, changes nothing.

Steps, one by one, are in the adapters' own contract: accumulated, packed, streamed, dequantised, loaded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frozen_runs as runs
import pytest
import torch

from pefttool.api.errors import Refused
from pefttool.config import registry as registries

pytestmark = pytest.mark.usefixtures("own_cache")
REGISTRY = registries.build()
#: Float32; features come from batches of other shapes than the steps', so that products are rounded in another order.
ROUNDING = 2e-6
KINDS = {"llama": "causal-lm", "bert": "text-classification"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: runs.store_model(kind, folder / kind) for kind in KINDS}


def fine_tune(models: dict[str, Path], folder: Path, name: str, kind: str, adapter: str, **options: Any) -> runs.Seen:
    task = KINDS[kind]
    rows = runs.write_rows(folder, task, 14)
    settings = {"train__epochs": 1, "train__optimizer": "sgd", "train__learning_rate": 0.01, **options}
    seen = runs.fine_tune(REGISTRY, folder / name, models[kind], rows, task, adapter, **settings)
    told = [e["text"] for e in seen.events if e["type"] == "Notice" and e["level"] == "warning"]
    assert not [
        text for text in told if not text.startswith("memory:")
    ]  # a plan's share of so little is no matter here
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", REGISTRY.adapters)
def test_what_is_kept_of_an_earlier_run_changes_nothing(
    models: dict[str, Path], tmp_path: Path, adapter: str, kind: str
) -> None:
    """Encoded rows, and features of what stays frozen: every gradient, the losses and the weights in the end."""
    given = {"train__rehearse": True}
    without = fine_tune(models, tmp_path, "without", kind, adapter, data__cache=False, **given)
    first, second = (fine_tune(models, tmp_path, name, kind, adapter, **given) for name in ("first", "second"))
    assert second.encoded == 0 < first.encoded == without.encoded
    assert runs.worst(first, without) <= (ROUNDING if "features" in first.progressed() else 0)
    assert runs.worst(second, first) == 0 and second.after == first.after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", REGISTRY.adapters)
def test_blocks_that_are_streamed_change_nothing(
    models: dict[str, Path], tmp_path: Path, adapter: str, kind: str
) -> None:
    """To the last bit, from the mapped file; the plan refuses those that cannot. (Every quantizer: the contract.)"""
    given = {"quantize": "nf4", "train__max_steps": 2}
    try:
        streamed = fine_tune(models, tmp_path, "streamed", kind, adapter, memory__stream=True, **given)
    except Refused as refused:
        assert REGISTRY.adapters[adapter].trains_base or "stream" in str(refused)
        return
    resident = fine_tune(models, tmp_path, "resident", kind, adapter, **given)
    assert runs.worst(streamed, resident) == 0 and streamed.after == resident.after
