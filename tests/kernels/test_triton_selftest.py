"""The self-test of every tile, and the GPU benchmark with fused kernels in it, in Triton's interpreter."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pefttool_kernels.selftest import selftest
from pefttool_kernels.selftest import tiles as selftest_tiles
from pefttool_kernels.selftest.cases import KINDS, Check
from pefttool_kernels.triton.configs import BACKWARD, FORWARD

BENCH = Path(__file__).parents[2] / "kernels" / "bench"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: two kinds, one dtype, one shape with edges everywhere."""
    monkeypatch.setattr(selftest, "KINDS", {name: KINDS[name] for name in ("nf4 nested", "int8")})
    monkeypatch.setattr(selftest, "DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(selftest, "SHAPES", ((37, 131, 192),))


def of_triton(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.backend == "triton"]


def test_every_tile_is_checked_and_right() -> None:
    found = of_triton(selftest.run(CPU, every_tile=True))
    assert all(check.ok for check in found), [check for check in found if not check.ok]
    tiles = {("forward", f"{tile.tile}x{tile.block_k}") for tile in FORWARD}
    tiles |= {("backward", f"{tile.tile}x{tile.block_k}") for tile in BACKWARD}
    for kind in ("nf4 nested", "int8"):
        assert {
            (check.direction, check.what.removeprefix(f"{kind} tile "))
            for check in found
            if check.direction and check.what.startswith(kind)
        } == tiles
    assert [check.operator for check in found if not check.direction] == ["dequantize_4bit"]


@pytest.mark.parametrize(
    ("launcher", "wrong_direction"),
    [
        ("linear_4bit", "forward"),
        ("linear_4bit_dx", "backward"),
        ("linear_8bit", "forward"),
        ("linear_8bit_dx", "backward"),
    ],
)
def test_a_tile_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, launcher: str, wrong_direction: str) -> None:
    right, tile = getattr(selftest_tiles, launcher), FORWARD[1]

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        if arguments[-1] == tile:
            result[-1, -1] = float("nan")
        return result

    monkeypatch.setattr(selftest_tiles, launcher, wrong)
    (failed,) = [check for check in of_triton(selftest.run(CPU, every_tile=True)) if not check.ok]
    assert failed.direction == wrong_direction and failed.operator == launcher.removesuffix("_dx")
    assert failed.what.endswith(f"tile {tile.tile}x{tile.block_k}")


def test_the_gpu_benchmark_with_fused_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    gpu = importlib.import_module("gpu")
    tiny = replace(gpu.TINY, kinds=(("nf4", True), ("int8", False)), dtypes=("bfloat16",), rows=(17,))
    monkeypatch.setattr(gpu, "TINY", tiny)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    products = [line for line in lines if line["type"] == "product"]
    fused = {line["contestant"] for line in products if line["contestant"].startswith("fused ")}
    assert fused == {f"fused {tile.tile}" for tile in FORWARD}
    assert all(line["times"] and line["error"] < 3e-3 and not line["wrong"] for line in products)
    assert "dequantize" in {line["contestant"] for line in products}
    assert "x bnb" in capsys.readouterr().out
