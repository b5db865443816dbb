"""Tuning: the crossover of invented times, what is refused, and what is kept; the measuring itself, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pefttool_kernels import machine
from pefttool_kernels.dispatch import Machine
from pefttool_kernels.timing import tune
from pefttool_kernels.timing.tune import Point, crossover

CPU = torch.device("cpu")
ROWS = (16, 64, 256, 1024, 4096)


def points(fused: Sequence[float], library: Sequence[float]) -> list[Point]:
    return [Point("forward", *values) for values in zip(ROWS, fused, library, strict=True)]


@pytest.mark.parametrize(
    ("fused", "library", "limit"),
    [
        pytest.param((1, 2, 4, 16, 70), (3, 4, 5, 14, 50), 256, id="crossing once"),
        pytest.param((1, 2, 4, 16, 64), (2, 4, 8, 32, 128), 4096, id="always"),
        pytest.param((2, 4, 8, 32, 128), (1, 2, 4, 16, 64), 0, id="never"),
        pytest.param((1, 2, 4, 16, 64), (1, 2, 4, 16, 64), 0, id="equal: the simpler one"),
        pytest.param((1, 4.1, 4, 16, 70), (3, 4, 8, 14, 50), 256, id="one noisy loss before the crossing"),
        pytest.param((1, 2, 4, 16, 49), (3, 4, 5, 12, 50), 256, id="one lucky win behind it"),
        pytest.param((2, 4, 3.9, 16, 64), (1, 2, 4, 12, 48), 0, id="one lucky win, and else never"),
        pytest.param((5, 2, 4, 16, 70), (3, 4, 5, 14, 50), 256, id="slower at few rows, faster behind"),
    ],
)
def test_the_crossover_loses_least(fused: Sequence[float], library: Sequence[float], limit: int) -> None:
    found = points(fused, library)
    assert crossover(found) == limit
    assert crossover(found[::-1]) == limit  # in whatever order they come


def test_without_points_the_fused_kernels_are_never_chosen() -> None:
    assert crossover([]) == 0


def test_a_machine_without_a_gpu_has_nothing_to_tune() -> None:
    assert "fused kernels run on CUDA devices" in str(tune.refusal(CPU))
    with pytest.raises(tune.NothingToTune, match="CUDA devices"):
        next(tune.run(CPU))


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (Machine("cuda", "card", (8, 9), 24), None),
        (Machine("cuda", "card", (7, 5), 24), "no tensor-core code for compute capability 7.5"),
        (Machine("cuda", "card", (8, 9), 24, triton_missing="triton is not installed"), "triton is not installed"),
    ],
)
def test_a_card_that_cannot_run_them_has_nothing_to_tune(
    monkeypatch: pytest.MonkeyPatch, here: Machine, reason: str | None
) -> None:
    monkeypatch.setattr(machine, "of", lambda device: here)
    found = tune.refusal(torch.device("cuda"))
    assert found is None if reason is None else reason in str(found)


def test_every_number_of_rows_is_measured_each_way() -> None:
    found = list(tune.points(CPU, {(70, 128): 2, (64, 64): 1}, (1, 9), rounds=2, contestants=("tiles", "bitsandbytes")))
    assert [(point.direction, point.rows) for point in found] == [
        (direction, rows) for direction in ("forward", "backward") for rows in (1, 9)
    ]
    assert all(point.fused > 0 and point.library > 0 for point in found)


def test_a_layer_counts_as_often_as_a_block_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tune.measure, "take_turns", lambda runs, device, rounds: {name: [5.0, 1.0, 2.0] for name in runs}
    )
    found = list(tune.points(CPU, {(64, 64): 3, (64, 128): 1}, (4,)))
    assert [(point.fused, point.library) for point in found] == [(8.0, 8.0)] * 2


def test_the_limits_are_kept_for_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "of", lambda device: Machine("cuda", "A Card", (8, 9), 24))
    forward = points((1, 2, 4, 16, 70), (3, 4, 5, 14, 50))
    backward = [Point("backward", point.rows, point.library, point.fused) for point in forward]
    limits, path = tune.store(torch.device("cuda"), [*forward, *backward])
    assert limits == {"forward": 256, "backward": 0}
    assert path.is_relative_to(tmp_path) and machine.measured_rows("A Card") == limits
