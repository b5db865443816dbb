"""The compiled CPU code: bitsandbytes' values to the bit, products rounded once, any shape; and its absence."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import WORST, error, four_bit
from torch import Tensor

from pefttool_kernels import backends, dispatch, machine, tiles
from pefttool_kernels.cpu import native
from pefttool_kernels.layout import FourBitWeight

pytestmark = pytest.mark.usefixtures("two_threads")

ROOT = Path(__file__).parents[2]
dequantizes = pytest.mark.skipif(not native.dequantizes(), reason="no compiled code for AVX512 here")
multiplies = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@dequantizes
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "k"), [(1, 64), (33, 192), (257, 1088)])
def test_every_rectangle_is_bitsandbytes_own(dtype, quant_type, nested, n, k):
    weight, expected = four_bit(n, k, dtype, quant_type, nested)
    assert torch.equal(native.dequantize(weight, dtype, 0, n, 0, k), expected)
    rows, columns = slice(n // 3, max(n // 3 + 1, 2 * n // 3)), slice(k // 3 // 64 * 64, k)
    part = native.dequantize(weight, dtype, rows.start, rows.stop, columns.start, columns.stop)
    assert torch.equal(part, expected[rows, columns])


@dequantizes
@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_of_any_size(scale, dtype):
    """Down to where bfloat16 is subnormal: there bitsandbytes' instruction gives zero, and ours the value."""
    weight, _ = four_bit(9, 128, torch.float32, nested=False)
    weight.absmax.fill_(scale)
    expected = tiles._composed(weight, dtype).rows(0, 9)
    assert torch.equal(native.dequantize(weight, dtype, 0, 9, 0, 128), expected)


@dequantizes
def test_columns_that_cut_a_block_are_refused():
    weight, _ = four_bit(9, 128)
    with pytest.raises(ValueError, match="multiples of 64"):
        native.dequantize(weight, torch.bfloat16, 0, 9, 0, 32)


@multiplies
@settings(max_examples=60, deadline=None)
@given(
    m=st.one_of(st.integers(0, 9), st.integers(10, 80)),
    n=st.integers(1, 150),
    blocks=st.one_of(st.integers(1, 9), st.integers(10, 40)),
    quant_type=st.sampled_from(["nf4", "fp4"]),
    nested=st.booleans(),
    bias=st.booleans(),
    rank=st.integers(0, 5),
)
def test_products_are_rounded_once(m, n, blocks, quant_type, nested, bias, rank):
    k = 64 * blocks
    weight, dequantised = four_bit(n, k, torch.bfloat16, quant_type, nested)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(m, k, generator=generator).bfloat16()
    added = torch.randn(n, generator=generator) if bias else None
    u, b = (torch.randn(m, rank, generator=generator), torch.randn(n, rank, generator=generator))
    expected = x.double() @ dequantised.double().T
    if rank:
        expected += u.double() @ b.double().T
    if added is not None:
        expected += added.double()
    result = native.linear_4bit(x, weight, added, u if rank else None, b if rank else None)
    assert result.shape == (m, n) and result.dtype == torch.bfloat16
    magnitude = x.double().abs() @ dequantised.double().abs().T + expected.abs()
    assert ((result.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5 * magnitude).all()
    if m * n >= 1000:
        assert error(result, expected) <= WORST[torch.bfloat16]


@multiplies
@pytest.mark.parametrize("n", [1, 15, 16, 17, 35])
@pytest.mark.parametrize("m", [1, 4, 5, 8, 9, 64])
def test_the_weights_in_it_are_bitsandbytes_own(m, n):
    """Rows of the identity pick columns of W: nothing is summed, so every weight shows, to the bit."""
    weight, dequantised = four_bit(n, 192)
    picked = torch.eye(192, dtype=torch.bfloat16)[100 : 100 + m]
    assert torch.equal(native.linear_4bit(picked, weight, None, None, None), dequantised.T[100 : 100 + m])


@multiplies
@pytest.mark.parametrize("m", [3, 20])
def test_every_value_is_written_and_none_beside_it(m, monkeypatch):
    weight, dequantised = four_bit(37, 128)
    guarded = torch.full((m * 37 + 128,), float("nan"), dtype=torch.bfloat16)
    x = torch.randn(m, 128).bfloat16()
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: guarded[64 : 64 + m * 37].view(m, 37))
    result = native.linear_4bit(x, weight, None, None, None)
    monkeypatch.undo()
    assert (
        torch.isfinite(result).all() and torch.isnan(guarded[:64]).all() and torch.isnan(guarded[64 + m * 37 :]).all()
    )
    assert error(result, x.double() @ dequantised.double().T) <= 2**-8


@multiplies
@pytest.mark.parametrize("m", [2, 12])
def test_what_is_not_finite_stays_in_its_row(m):
    weight, _ = four_bit(16, 128)
    x = torch.ones(m, 128, dtype=torch.bfloat16)
    x[1, 5], x[0, 7] = float("nan"), float("inf")
    result = native.linear_4bit(x, weight, None, None, None)
    assert torch.isnan(result[1]).all() and not torch.isfinite(result[0]).any() and torch.isfinite(result[2:]).all()


@multiplies
def test_there_is_one_pool_of_threads():
    """Two OpenMP runtimes in one process would wait for each other on every product. Others may bring their own."""
    source = """
from pathlib import Path
from pefttool_kernels.cpu import native
native.library()
maps = Path("/proc/self/maps").read_text(encoding="utf-8")
print(len({line.split()[-1] for line in maps.splitlines() if "libgomp" in line}))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "1\n"


def weights() -> list[tuple[FourBitWeight, Any]]:
    return [(four_bit(300, 320, nested=nested)[0], nested) for nested in (True, False)]


def test_without_it_bitsandbytes_operators_make_the_same_tiles(monkeypatch):
    for weight, nested in weights():
        whole = tiles.four_bit(weight, torch.bfloat16).rows(0, 300)
        composed = tiles._composed(weight, torch.bfloat16)
        step = composed.row_step
        assert step == (256 if nested else 1)
        assert torch.equal(composed.rows(step, 300), whole[step:])
        assert torch.equal(composed.columns(64, 192), whole[:, 64:192])
        x = torch.randn(7, 320).bfloat16()
        expected = backends.forward("tiles", x, weight, None, None, None)
        with monkeypatch.context() as patch:
            patch.setattr(native, "dequantizes", lambda: False)
            assert torch.equal(backends.forward("tiles", x, weight, None, None, None), expected)


def test_a_library_that_is_not_there_is_a_reason_and_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    for function in (native.library, native.missing, native.dequantizes, machine._describe):
        monkeypatch.setattr(*locate(function), function.__wrapped__)
    assert "not built: reinstall pefttool where there is a C compiler" in str(native.missing())
    assert not native.dequantizes()
    (tmp_path / "_native.so").write_bytes(b"not a library")
    assert "cannot be loaded" in str(native.missing())
    known = machine.of(torch.device("cpu"))
    site = dispatch.Site("linear_4bit", "forward", 1, 64, 64, torch.bfloat16)
    assert dispatch.choose(site, known).backend == "tiles"


def locate(function: Any) -> tuple[Any, str]:
    return sys.modules[function.__module__], function.__name__


@pytest.fixture
def hook(monkeypatch) -> Any:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_compiler_is_no_error_but_a_reason(hook, monkeypatch, tmp_path):
    for source in hook.SOURCES:
        (tmp_path / source).write_text("this is not C\n")
    monkeypatch.setenv("CC", "no-such-compiler --flag")
    assert "there is no C compiler ('no-such-compiler')" in hook.compiled(tmp_path)
    monkeypatch.delenv("CC")
    reason = hook.compiled(tmp_path)
    assert (reason and "error" in reason) or "no C compiler" in reason
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(hook.SOURCES)
    monkeypatch.setenv("PEFTTOOL_NATIVE", "0")
    assert hook.obstacle() == "PEFTTOOL_NATIVE is 0"
