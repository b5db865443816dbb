"""The GPU benchmark, as far as it goes without a GPU: what it plans, what it says, and every line on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pefttool_kernels import backends
from pefttool_kernels.selftest import selftest
from pefttool_kernels.triton.configs import BACKWARD, FORWARD

BENCH = Path(__file__).parents[2] / "kernels" / "bench"
SCRIPT = BENCH / "gpu.py"


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """Imports a module of the benchmark, as the script itself does: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module


@pytest.fixture
def dry_run(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Runs all of it on the CPU: exit status, JSON lines, what was printed."""
    monkeypatch.setattr(selftest, "KINDS", {"nf4 nested": selftest.KINDS["nf4 nested"]})

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        code = module("gpu").main(["--device", "cpu", "--out", str(tmp_path), *arguments])
        (written,) = tmp_path.glob("*.jsonl")
        return code, [json.loads(line) for line in written.read_text().splitlines()], capsys.readouterr().out

    return run


def test_without_a_gpu_it_says_what_it_needs_in_one_line(tmp_path: Path) -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=hidden, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this needs an NVIDIA GPU, a CUDA build of torch, triton, bitsandbytes and pefttool")
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "NEEDED", (*gpu.NEEDED, "no_such_package"))
    assert str(gpu.cannot_run("cuda")).endswith("no_such_package cannot be imported")


def test_the_full_plan(module: Any) -> None:
    full, quick = module("gpu").FULL, module("gpu").QUICK
    assert full.rows[0] == 16 and full.rows[-1] == 4096 and full.rounds == 50
    assert set(full.shapes) == {(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)}
    assert set(full.kinds) >= {("nf4", True), ("nf4", False)} and set(full.dtypes) == {"bfloat16", "float16"}
    for name in ("kinds", "dtypes", "shapes", "rows", "loss", "tokens"):
        assert set(getattr(quick, name)) <= set(getattr(full, name))


def test_a_gpu_times_every_tile_that_ships(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    products = module("gpu_products")
    monkeypatch.setattr(products, "launchers_run", lambda device: True)
    stored = products.store("nf4", True, torch.bfloat16, 64, 128, torch.device("cpu"))
    x, g = torch.ones(2, 128, dtype=torch.bfloat16), torch.ones(2, 64, dtype=torch.bfloat16)
    common = {"cublas", "bitsandbytes", "dequantize"}
    for direction, tiles in (("forward", FORWARD), ("backward", BACKWARD)):
        assert set(products.contestants(direction, stored, x, g)) == common | {f"fused {t.tile}" for t in tiles}


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_every_part_writes_its_lines(dry_run: Any, quick: list[str]) -> None:
    code, lines, printed = dry_run(*quick)
    assert code == 0
    assert lines[0]["type"] == "header" and lines[-1]["type"] == "footer" and lines[-1]["good"]
    assert lines[0]["packages"]["torch"] == torch.__version__
    counts = Counter(line["type"] for line in lines)
    assert set(counts) == {"header", "check", "product", "loss", "step", "footer"}
    for line in lines:
        if line["type"] in ("product", "loss", "step"):
            assert 0 < line["times"]["p10"] <= line["times"]["median"] <= line["times"]["p90"], line
    products = [line for line in lines if line["type"] == "product"]
    assert {(line["kind"], line["nested"]) for line in products} == {("nf4", True), ("nf4", False), ("int8", False)}
    assert all(line["error"] < 3e-3 and not line["wrong"] for line in products)
    contestants = {line["contestant"] for line in lines if line["type"] == "step"}
    assert contestants == {"bitsandbytes + peft", "pefttool, plain loss", "pefttool"}
    assert "correct: " in printed and "please send" in printed


def test_the_contestants_of_a_step_compute_the_same(dry_run: Any) -> None:
    losses = [line["loss"] for line in dry_run()[1] if line["type"] == "step"]
    assert len(losses) == 3 and max(losses) - min(losses) < 2e-3


def test_a_wrong_kernel_stops_it_before_anything_is_timed(dry_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends._FORWARD["tiles"]
    monkeypatch.setitem(backends._FORWARD, "tiles", lambda *arguments: right(*arguments) * 1.01)
    code, lines, printed = dry_run()
    assert code == 1 and {line["type"] for line in lines} == {"header", "check", "footer"}
    assert "WRONG: tiles: linear_4bit forward nf4 nested bfloat16" in printed and "nothing was timed" in printed


def test_bitsandbytes_own_errors_stop_nothing(dry_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends._FORWARD["bitsandbytes"]
    monkeypatch.setitem(backends._FORWARD, "bitsandbytes", lambda *arguments: right(*arguments) * 1.01)
    code, lines, printed = dry_run()
    assert code == 0 and "WRONG: bitsandbytes" in printed and any(line["type"] == "step" for line in lines)


def test_a_part_that_fails_costs_no_other(dry_run: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(module("gpu_products"), "store", fail)
    code, lines, printed = dry_run()
    (failure,) = [line for line in lines if line["type"] == "failure"]
    assert code == 1 and failure["part"] == "products" and "an illegal memory access" in failure["problem"]
    assert "products FAILED: RuntimeError: an illegal memory access" in printed
    assert any(line["type"] == "step" for line in lines) and not lines[-1]["good"]


def test_without_peft_the_step_is_left_out_and_said_so(
    dry_run: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("gpu"), "NEEDED_FOR_TRAINING", ("no_such_package",))
    code, lines, printed = dry_run()
    assert code == 0 and "left out: they need no_such_package" in printed
    assert any(line["type"] == "skipped" for line in lines)


def test_who_raises_takes_no_further_part(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    products = module("gpu_products")
    stored = products.store("nf4", True, torch.bfloat16, 64, 128, torch.device("cpu"))
    honest = products.contestants

    def with_a_failure(*arguments: Any) -> Any:
        def compute() -> torch.Tensor:
            raise RuntimeError("out of\nmemory")

        return {"fused 1x1": compute, **honest(*arguments)}

    monkeypatch.setattr(products, "contestants", with_a_failure)
    case = products.Case("nf4", True, torch.bfloat16, 64, 128, 3)
    failed, *others = products.run(case, "forward", stored, rounds=2)
    assert failed.times is None and failed.problem == "RuntimeError: out of memory"
    assert all(result.times["rounds"] == 2 for result in others)
    assert products.line([failed, *others]).split()[:2] == ["M=3", "-"]


def test_only_a_fused_kernel_can_be_wrong(module: Any) -> None:
    products = module("gpu_products")
    case = products.Case("nf4", True, torch.bfloat16, 64, 128, 3)

    def wrong(contestant: str, error: float | None) -> bool:
        found: bool = products.Result(case, "forward", contestant, error=error).wrong
        return found

    assert wrong("fused 64x64", 2.3e-3) and wrong("fused 64x64", float("nan"))
    assert not wrong("fused 64x64", 2.1e-3) and not wrong("fused 64x64", None)
    assert not wrong("cublas", 1.0) and not wrong("bitsandbytes", 1.0)


def test_the_best_fused_tile_is_compared_with_bitsandbytes(module: Any) -> None:
    products = module("gpu_products")
    case = products.Case("nf4", True, torch.bfloat16, 64, 128, 3)
    times = {"bitsandbytes": 3.0, "fused a": 2.0, "fused b": 1.5, "fused c": 0.1}
    results = [
        products.Result(case, "forward", name, {"median": median}, error=1.0 if name == "fused c" else 1e-3)
        for name, median in times.items()
    ]
    line = products.line(results)
    assert line.split() == ["M=3", "3.000", "2.000", "1.500", "0.100!", "2.00", "x", "bnb"]
    assert len(line) == len(products.header(results))


def test_statistics_are_times_that_were_measured(module: Any) -> None:
    statistics = module("gpu_record").statistics
    found = statistics([float(value) for value in range(50, 0, -1)])
    assert found == {"median": 25.0, "p10": 6.0, "p90": 45.0, "rounds": 50}
    assert statistics([7.0]) == {"median": 7.0, "p10": 7.0, "p90": 7.0, "rounds": 1}


def test_the_card_is_asked_where_its_tool_is_there(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = module("gpu_record")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record._ask_nvidia_smi("GPU-1") is None
    tool = tmp_path / "nvidia-smi"
    values = "A Card, 580.1, P0, 1980 MHz, 2619 MHz, 1980 MHz, 70.1 W, 700.00 W, 30"
    tool.write_text(f'#!/bin/sh\ntest "$1" = --id=GPU-1 && echo "{values}"\n')
    tool.chmod(0o755)
    answer = record._ask_nvidia_smi("GPU-1")
    assert answer["power.limit"] == "700.00 W" and answer["driver_version"] == "580.1" and len(answer) == 9
    assert record._ask_nvidia_smi("GPU-2") is None


def test_what_was_written_before_a_crash_is_there(module: Any, tmp_path: Path) -> None:
    record = module("gpu_record").Record(tmp_path / "new", "NVIDIA GeForce RTX 4060 Laptop GPU")
    record.write("product", error=1.0)
    assert record.path.name.startswith("nvidia-geforce-rtx-4060-laptop-gpu-")
    assert json.loads(record.path.read_text()) == {"type": "product", "error": 1.0}
    record.close()
