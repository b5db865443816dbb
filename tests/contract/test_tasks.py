"""Every registered task keeps its contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_samples import SAMPLES, Rows

from pefttool.config import registry as registries
from pefttool.testing import check_task

REGISTRY = registries.build()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    return {name: sample.rows(tmp_path_factory.mktemp(name)) for name, sample in SAMPLES.items()}


def test_no_task_is_left_out() -> None:
    assert set(REGISTRY.tasks) == set(SAMPLES)


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_contract(name: str, rows: dict[str, Rows]) -> None:
    # Tasks that only are asked for by name (masked-lm on the rows of causal-lm) recognise nothing.
    others = [own for other, own in rows.items() if other != name and own != rows[name]]
    check_task(REGISTRY.tasks[name], rows[name], kind=SAMPLES[name].kind, others=others)
