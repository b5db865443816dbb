"""The gates: what ships passes them, a kernel made worse does not, and the limits mean what gates.toml says.

Compiling happens in processes of their own, without Triton's interpreter, whatever mode this one is in.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"
LARGE = "forward_4bit 128x128x64 w8 s3 bf16 flat"
ARCHS = (80, 86, 89, 90, 120)

#: The shipped kernel of the largest tile, with what a change would bring about; `{change}` is the change.
VARIANT = """
from dataclasses import replace

import triton
import triton.language as tl

from pefttool_kernels.triton import _tl
from pefttool_kernels.triton.variants import shipped

{change}

def variants():
    (large,) = (variant for variant in shipped() if variant.name == "{name}")
    return [replace(large, name="changed", {arguments})]
"""

#: Half the warps hold a tile twice as large in registers each.
SPILLING = VARIANT.format(name=LARGE, change="", arguments="num_warps=4")
UNKNOWN_TILE = VARIANT.format(name=LARGE, change="", arguments='tile="128x96"')
BROKEN = VARIANT.format(name=LARGE, change="", arguments="constants={}")
#: One instruction more for every weight: the shuffle reads no more than five bits, and needs no mask.
MASKED = VARIANT.format(
    name=LARGE,
    arguments="",
    change="""
shuffle = _tl.look_up

@triton.jit
def masked(table, code, index):
    return shuffle(table, code, index & 15)

_tl.look_up = masked
""",
)
#: The table in memory, as one would write it first.
LOADED = VARIANT.format(
    name=LARGE,
    arguments="",
    change="""
@triton.jit
def load(table, code, index):
    return tl.load(code + (index & 15))

_tl.look_up = load
""",
)


@pytest.fixture(scope="module")
def gates() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("gates")


def run_gates(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCH / "gates.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def run_changed(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = folder / "changed.py"
    file.write_text(source, encoding="utf-8")
    return run_gates("--variants", file, "--only", "changed", "--arch", 89)


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 1, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("FAILED")]


def test_everything_that_ships_passes_on_every_card(gates: ModuleType) -> None:
    done = run_gates()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"sm_{arch}" in done.stdout for arch in ARCHS)
    assert all(f"\n{variant.name} " in done.stdout for variant in gates.load_variants(None))
    compared = [line for line in done.stdout.splitlines() if "bitsandbytes" in line]
    if _library().exists():
        assert len(compared) == len(ARCHS) * 3 and all(": ours " in line for line in compared)
    else:
        assert all(": not compared with bitsandbytes: the installed" in line for line in compared)


def test_no_kernel_ships_without_a_variant(gates: ModuleType) -> None:
    compiled = {variant.kernel.__name__ for variant in gates.load_variants(None)}
    shipped = set(kernels_that_ship())
    assert {"forward_4bit_kernel", "dequantize_4bit_kernel"} <= shipped
    assert shipped <= compiled


def kernels_that_ship() -> Iterator[str]:
    """The names of the package's kernels, whether or not a list has them."""
    import pefttool_kernels.triton as package

    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if name.endswith("_kernel") and hasattr(value, "arg_names"):
                yield name


def _library() -> Path:
    import bitsandbytes

    return Path(bitsandbytes.__file__).with_name("libbitsandbytes_cuda128.so")


def test_a_kernel_that_spills_fails(tmp_path: Path) -> None:
    found = failures(run_changed(tmp_path, SPILLING))
    assert any(line.startswith("FAILED changed on sm_89: spills is ") for line in found)
    assert any("registers is 255, must be at most 240" in line for line in found)


@pytest.mark.parametrize("source", [MASKED, LOADED], ids=["mask", "table"])
def test_a_kernel_that_takes_more_instructions_fails(tmp_path: Path, source: str) -> None:
    found = failures(run_changed(tmp_path, source))
    assert any(line.startswith("FAILED changed on sm_89: instructions_per_mma is ") for line in found)


def test_a_kernel_without_limits_fails(tmp_path: Path) -> None:
    (line,) = failures(run_changed(tmp_path, UNKNOWN_TILE))
    assert line == "FAILED changed on sm_89: the limit is missing, must be given for forward_4bit 128x96"


def test_a_kernel_that_does_not_compile_fails(tmp_path: Path) -> None:
    (line,) = failures(run_changed(tmp_path, BROKEN))
    assert line.startswith("FAILED changed on sm_89: the result is ") and line.endswith("must be machine code")


def test_nothing_is_said_about_kernels_that_are_interpreted() -> None:
    command = [sys.executable, str(BENCH / "gates.py")]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and "TRITON_INTERPRET is set" in done.stderr


# ---- the limits themselves, with made-up figures


@pytest.fixture
def report(gates: ModuleType) -> Any:
    """Like that of the largest tile on sm_89."""
    return gates.sass.Report(
        registers=203,
        stack=0,
        spills=0,
        shared=58368,
        body=272,
        mma=64.0,
        tensor_core=("HMMA.16816.F32.BF16",),
        async_copies=4,
        wide_loads=0,
        wide_stores=0,
        ldmatrix=24,
        shuffles=32,
        barriers=2,
    )


@pytest.fixture
def variant() -> SimpleNamespace:
    return SimpleNamespace(
        name="kernel", family="forward_4bit", tile="128x128", nested=False, num_warps=8, weights_per_thread=32
    )


def broken(gates: ModuleType, variant: Any, report: Any, arch: int = 89) -> set[str]:
    return {breach.what for breach in gates.gate_limits.load().check(variant, arch, report)}


def test_limits_that_are_met(gates: ModuleType, variant: Any, report: Any) -> None:
    assert broken(gates, variant, report) == set()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"spills": 1}, {"spills"}),
        ({"stack": 8}, {"stack"}),
        ({"registers": 241}, {"registers"}),
        ({"body": 289}, {"instructions_per_mma"}),
        ({"async_copies": 3}, {"async_copies"}),
        ({"ldmatrix": 15}, {"ldmatrix"}),
        ({"barriers": 3}, {"barriers"}),
        ({"shuffles": 33}, {"shuffles_per_weight"}),
        ({"shared": 99 * 1024 + 1}, {"shared", "programs"}),
        ({"tensor_core": ("HMMA.16816.F16",)}, {"tensor_core"}),
        ({"tensor_core": (), "mma": 0.0}, {"tensor_core", "instructions_per_mma"}),
    ],
)
def test_each_limit(gates: ModuleType, variant: Any, report: Any, changes: dict[str, Any], what: set[str]) -> None:
    assert broken(gates, variant, replace(report, **changes)) == what


def test_the_last_entry_that_matches_decides(gates: ModuleType, variant: Any, report: Any) -> None:
    nested = SimpleNamespace(**{**vars(variant), "nested": True})
    assert broken(gates, nested, replace(report, barriers=4)) == set()
    hopper = {"tensor_core": ("HGMMA.64x128x16.F32.BF16",), "ldmatrix": 0, "registers": 128, "barriers": 3}
    assert broken(gates, variant, replace(report, **hopper, body=220), 90) == set()
    assert broken(gates, variant, replace(report, **hopper, body=272), 90) == {"instructions_per_mma"}
    assert broken(gates, variant, replace(report, body=220, barriers=3, registers=128), 90) == {"tensor_core"}


def test_programs_that_a_multiprocessor_holds(gates: ModuleType, report: Any) -> None:
    """By registers: 203 x 32 = 6496 a warp become 6656; 65536 / (8 x 6656) = 1.2. By shared memory: 100 / 58 KiB."""
    card = gates.gate_limits.load().cards[89]
    assert card.programs(report, num_warps=8) == 1
    assert card.programs(replace(report, registers=40, shared=2048), num_warps=4) == 12
    assert card.programs(replace(report, registers=40, shared=33 * 1024), num_warps=4) == 2


def test_an_exception_holds_as_long_as_it_is_needed(gates: ModuleType, variant: Any, report: Any) -> None:
    limits = gates.gate_limits.load()
    exception = gates.gate_limits.Rule(
        family=["forward_4bit"], tile=["128x128"], arch=[89], at_most={"instructions_per_mma": 4.6}, reason="why"
    )
    limits = replace(limits, exceptions=[exception])
    worse = replace(report, body=290)
    assert limits.check(variant, 89, worse) == []
    assert [breach.what for breach in limits.check(variant, 86, worse)] == ["instructions_per_mma"]
    assert limits.stale_exceptions([(variant, 89, worse)]) == []
    assert limits.stale_exceptions([(variant, 89, report), (variant, 86, worse)]) == [exception]
    assert limits.stale_exceptions([(variant, 89, replace(report, spills=1))]) == [exception]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('[[limits]]\nfamly = "forward_4bit"', "famly"),
        ("[[limits]]\nat_most = { register = 1 }", "register"),
        ("[[exception]]\nat_most = { registers = 250 }", "needs a reason"),
    ],
)
def test_a_mistake_in_the_limits_is_an_error(gates: ModuleType, tmp_path: Path, entry: str, message: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(f"{gates.gate_limits.LIMITS.read_text(encoding='utf-8')}\n{entry}\n", encoding="utf-8")
    with pytest.raises(gates.gate_limits.LimitsError, match=message):
        gates.gate_limits.load(file)


def test_a_kernel_no_better_than_the_librarys_fails(
    gates: ModuleType, variant: Any, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = gates.gate_limits.load()
    kernel = SimpleNamespace(**vars(variant), constants={"BLOCK_K": 64}, signature={"x": "*bf16"})
    theirs = {(tile, dtype): 4.25 for tile in limits.library.tiles for dtype in ("bf16", "fp16")}
    monkeypatch.setattr(gates.gate_library, "instructions_per_mma", lambda library, arch: theirs)
    compiled = [gates.Compiled(kernel, 89, replace(report, body=body)) for body in (271, 272)]
    found, lines = gates.compare(compiled, limits)
    assert [str(breach) for breach in found] == [
        "kernel on sm_89: instructions_per_mma is 4.25, must be below bitsandbytes' own 4.25"
    ]
    assert lines == ["sm_89 128x128x64: ours 4.23 to 4.25, bitsandbytes' 4.25"]


def test_without_the_librarys_kernel_the_reason_is_stated(gates: ModuleType, variant: Any, report: Any) -> None:
    limits = gates.gate_limits.load()
    limits = replace(limits, library=replace(limits.library, file="absent.so"))
    kernel = SimpleNamespace(**vars(variant), constants={"BLOCK_K": 64}, signature={"x": "*bf16"})
    assert gates.compare([gates.Compiled(kernel, 89, report)], limits) == (
        [],
        ["sm_89: not compared with bitsandbytes: the installed bitsandbytes has no absent.so"],
    )
