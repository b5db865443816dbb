"""The floor under a streamed step's time: bytes that are really fetched, over a rate that is really measured."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from blocks import Lane

from pefttool.files.sectioned_file import TensorSection
from pefttool.forecast import throughput
from pefttool.nn.block_streaming import Slots


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_the_bytes_of_a_step_are_those_that_the_slots_fetch(blocks: int, ahead: int) -> None:
    sections = [TensorSection.of({"a": torch.empty(4096 * (1 + block))}) for block in range(blocks)]
    slots = Slots(sections, ahead)
    slots.lane = Lane()
    walk = [*range(blocks), *reversed(range(blocks))]
    for block in walk:
        slots.tensors(block)
    before = slots.fetched_bytes
    for block in walk:
        slots.tensors(block)
    assert throughput.step_bytes(slots) == slots.fetched_bytes - before


@pytest.mark.parametrize("there", [False, True])
def test_a_rate_is_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(throughput, "SAMPLE", 2 << 20)
    monkeypatch.setattr(throughput, "PIECE", 1 << 20)
    file = tmp_path / "cache" / "model.safetensors"
    if there:
        file.parent.mkdir()
        file.write_bytes(bytes(3 << 20))
    rate = throughput.reading_rate(file)
    assert 1e6 < rate < 1e12
    assert list(file.parent.iterdir()) == ([file] if there else [])


def test_a_slow_disk_is_a_low_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SAMPLE", 2 << 20)
    file = tmp_path / "model"
    file.write_bytes(bytes(2 << 20))
    clock = iter((10.0, 14.0))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    assert throughput.reading_rate(file) == (2 << 20) / 4
    assert time is throughput.time


def test_seconds() -> None:
    assert throughput.Feeding(6_000, 2_000.0, "measured").seconds == 3
    assert throughput.copying_rate("cpu") is None
