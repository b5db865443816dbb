"""The floors against values computed by hand, on a card with round numbers and on one of the table."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


@pytest.fixture(scope="module")
def roofline() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("roofline")


@pytest.fixture
def card(roofline: ModuleType) -> Any:
    """10 processors x 1 GHz x 100 operations = 1e12 operations a second; 1e11 bytes a second."""
    return roofline.Card("round", processors=10, clock=1e9, operations_per_clock=100, bandwidth=1e11)


def test_bytes_of_a_weight(roofline: ModuleType) -> None:
    assert roofline.NESTED_BYTES == 0.5 + 0.015625 + 0.000244140625
    assert roofline.FLAT_BYTES == 0.5625


def test_a_product_that_computes(roofline: ModuleType, card: Any) -> None:
    """2 x 1000 x 100 x 200 = 4e7 operations take 40 us; 20000 x 0.5625 + 2 x 1000 x 300 = 611250 bytes only 6.1."""
    assert card.operations == 1e12
    assert roofline.operations(1000, 100, 200) == 40_000_000
    assert roofline.moved_bytes(1000, 100, 200, roofline.FLAT_BYTES) == 611_250
    assert roofline.product_seconds(card, 1000, 100, 200, roofline.FLAT_BYTES) == pytest.approx(40e-6)


def test_a_product_that_reads(roofline: ModuleType, card: Any) -> None:
    """One row: 4e4 operations take 0.04 us; 20000 x 2 + 2 x 300 = 40600 bytes take 0.406."""
    assert roofline.product_seconds(card, 1, 100, 200, roofline.DENSE_BYTES) == pytest.approx(0.406e-6)


def test_two_passes(roofline: ModuleType, card: Any) -> None:
    """20000 weights read packed and written dense: 20000 x 2.5625 = 51250 bytes, 0.5125 us; then 40 us of computing."""
    floor = roofline.floor(card, 1000, 100, 200, roofline.FLAT_BYTES)
    assert floor.dequantize == pytest.approx(0.5125e-6)
    assert floor.two_passes == pytest.approx(40.5125e-6)
    assert floor.gain == pytest.approx(40.5125 / 40)
    assert floor.break_even == pytest.approx(40 / 40.5125)


def test_rows_at_which_the_bound_changes(roofline: ModuleType, card: Any) -> None:
    """0.5625 bytes take 5.625 ps, in which 5.625 operations are done: 2.8125 rows of 2; 2.5625 bytes: 12.8125 rows."""
    assert roofline.ridge(card, roofline.FLAT_BYTES) == pytest.approx(2.8125)
    assert roofline.dequantize_rows(card, roofline.FLAT_BYTES) == pytest.approx(12.8125)


def test_a_laptop(roofline: ModuleType) -> None:
    """RTX 4060 Laptop: 24 x 2.1 GHz x 512 = 25.8 TFLOP/s. A pass over 4096 x 4096: 2.516 x 16.8 MB at 256 GB/s."""
    (card,) = (card for card in roofline.CARDS if card.name == "RTX 4060 Laptop")
    assert card.operations == pytest.approx(25.8048e12)
    assert roofline.dequantize_rows(card) == pytest.approx(126.8, abs=0.05)
    floor = roofline.floor(card, 512, 4096, 4096)
    assert floor.dequantize == pytest.approx(0.1649e-3, rel=1e-3)
    assert floor.fused == pytest.approx(17_179_869_184 / 25.8048e12)
    assert floor.break_even == pytest.approx(1 / (1 + 126.8 / 512), rel=1e-3)


def test_the_command_prints_the_chosen_card_and_layer() -> None:
    done = subprocess.run(
        [sys.executable, BENCH / "roofline.py", "--card", "RTX 3060", "--layer", "100x200", "--rows", "7"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "calculated" in done.stdout and "RTX 3060: 25.5 TFLOP/s" in done.stdout
    assert "RTX 3090" not in done.stdout
    (row,) = (line.split() for line in done.stdout.splitlines() if "100x200" in line)
    assert row[3] == "7" and len(row) == 10
