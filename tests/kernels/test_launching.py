"""A card on which triton can launch nothing: said once, and PyTorch's and bitsandbytes' operators compute instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from losses import inputs
from on_card import OnCuda

from pefttool_kernels import backends, cross_entropy, dispatch, machine, ops
from pefttool_kernels.dispatch import BackendError, Machine, Site
from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.triton import probe

CARD = torch.device("cuda", 0)
NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable\nor set it.")
ADA = Machine("cuda", "card", (8, 9), 24)


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card of a kind that has tensor cores, and nothing known of it yet."""
    properties = SimpleNamespace(name="card", major=8, minor=9, multi_processor_count=24)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (8 << 30, 8 << 30))
    monkeypatch.setattr(machine, "measured_rows", lambda name: {})
    for known in (machine.triton_missing, machine._describe):
        known.cache_clear()
    yield
    for known in (machine.triton_missing, machine._describe):
        known.cache_clear()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Every attempt fails, as without a C compiler."""
    tried: list[torch.device] = []

    def launch(device: torch.device) -> None:
        tried.append(device)
        raise NO_COMPILER

    monkeypatch.setattr(probe, "launch", launch)
    return tried


def site(**changes: Any) -> Site:
    return Site("linear_4bit", "forward", 512, 4096, 4096, torch.bfloat16, **changes)


def test_it_is_tried_and_said_once(launches, caplog):
    with caplog.at_level(logging.WARNING):
        reasons = {machine.of(CARD).triton_missing for _ in range(3)} | {machine.triton_missing(CARD)}
    assert launches == [CARD] and len(reasons) == 1
    (reason,) = reasons
    assert reason.startswith("triton cannot launch a kernel here (RuntimeError: Failed to find C compiler. Please ")
    assert "apt install gcc python3-dev" in reason and "\n" not in reason
    assert [record.getMessage() for record in caplog.records] == [
        f"{reason}; PyTorch's and bitsandbytes' operators compute instead"
    ]


def test_auto_falls_back_and_a_name_raises(launches):
    here = machine.of(CARD)
    assert dispatch.choose(site(), here).backend == "bitsandbytes"
    assert dispatch.choose_dequantize(site(), here).backend == "bitsandbytes"
    for name in ("triton", "dequantize"):
        with pytest.raises(BackendError, match=r"Failed to find C compiler.*choose bitsandbytes"):
            dispatch.choose(site(), here, name)
    with pytest.raises(BackendError, match="Failed to find C compiler"):
        dispatch.choose_dequantize(site(), here, "dequantize")


def test_a_kernel_that_starts_lets_triton_be_chosen(monkeypatch):
    monkeypatch.setattr(probe, "launch", lambda device: None)
    assert machine.of(CARD).triton_missing is None
    assert dispatch.choose(site(), machine.of(CARD), "triton").backend == "triton"


def test_too_little_memory_says_nothing_of_triton(monkeypatch):
    def launch(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe, "launch", launch)
    with pytest.raises(torch.OutOfMemoryError):
        machine.triton_missing(CARD)
    monkeypatch.setattr(probe, "launch", lambda device: None)
    assert machine.triton_missing(CARD) is None


def test_the_fallback_of_a_product_is_not_said_again(launches, caplog, monkeypatch):
    ops._say.cache_clear()
    x = torch.zeros(3, 64).as_subclass(OnCuda)
    weight = SimpleNamespace(out_features=4, in_features=64)
    with caplog.at_level(logging.WARNING):
        assert ops._choose("forward", x.bfloat16(), weight, True, "auto") == "bitsandbytes"
        assert [record.name for record in caplog.records] == ["pefttool_kernels.machine"]
        weight.in_features = 65
        monkeypatch.setattr(machine, "of", lambda device: ADA)
        monkeypatch.setattr(ops, "_unreadable", lambda *arguments: "it is odd")
        ops._choose("forward", x.bfloat16(), weight, True, "auto")
    assert "linear_8bit: left to bitsandbytes: it is odd" in caplog.text


def test_the_loss_is_pytorchs_then(launches):
    h, weight, labels = inputs(9, 24, 37)
    logits = (h @ weight.t()).detach().as_subclass(OnCuda)
    known = labels.clamp(min=0)
    losses, slopes = cross_entropy._softmax(logits.clone(), known)
    expected = torch.nn.functional.cross_entropy(h @ weight.t(), known, reduction="none")
    torch.testing.assert_close(losses.as_subclass(torch.Tensor), expected.detach())
    torch.testing.assert_close(slopes.as_subclass(torch.Tensor), (-expected).exp().detach() - 1)
    assert launches == [CARD]


def on_card(weight: FourBitWeight) -> FourBitWeight:
    parts = [part.as_subclass(OnCuda) if isinstance(part, torch.Tensor) else part for part in weight]
    return FourBitWeight(*parts)


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(torch.bfloat16, "dequantize"), (torch.float16, "dequantize"), (torch.float32, "bitsandbytes")],
    ids=str,
)
def test_a_card_dequantises_into_the_dtype_that_is_asked_for(dtype, backend, four_bit_weight, monkeypatch):
    """What is asked is whether the kernels write that dtype, not whether they write bytes."""
    monkeypatch.setattr(machine, "of", lambda device: ADA)
    asked: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(backends, "dequantize", lambda name, weight, dtype: asked.append((name, dtype)))
    ops._dequantize_4bit(*on_card(four_bit_weight(4, 64)).arguments(), dtype, "auto")
    assert asked == [(backend, dtype)]


@pytest.mark.parametrize(("rows", "roundings"), [(1, 2), (4, 2), (5, 1), (37, 1)])
def test_bitsandbytes_on_a_card_rounds_as_often_as_is_said(rows, roundings, four_bit_weight, monkeypatch):
    """Its fused kernel takes no update; where the weight is written, the update is the product's start."""
    called: list[str] = []
    gemm = torch.ops.bitsandbytes.gemm_4bit.default

    def counted(*arguments: Any, **options: Any) -> Any:
        called.append("fused")
        return gemm(*(a.as_subclass(torch.Tensor) if isinstance(a, torch.Tensor) else a for a in arguments), **options)

    monkeypatch.setattr(torch.ops.bitsandbytes, "gemm_4bit", SimpleNamespace(default=counted))
    torch.manual_seed(rows)
    weight = four_bit_weight(256, 128)
    x, bias = torch.randn(rows, 128).bfloat16(), torch.randn(256).bfloat16()
    u, b = torch.randn(rows, 3), 0.02 * torch.randn(256, 3)  # a tenth of the product, as an adapter's update is small
    assert backends.roundings("bitsandbytes", x.as_subclass(OnCuda), weight, updated=True) == roundings
    assert backends.roundings("bitsandbytes", x.as_subclass(OnCuda), weight, updated=False) == 1
    assert backends.roundings("bitsandbytes", x, weight, updated=True) == 1
    y = backends.forward("bitsandbytes", x.as_subclass(OnCuda), weight, bias, u, b).as_subclass(torch.Tensor)
    assert len(called) == roundings - 1
    dense = backends.dequantized(weight, torch.bfloat16).double()
    truth = x.double() @ dense.t() + bias.double() + u.double() @ b.double().t()
    error = float((y.double() - truth).norm() / truth.norm())
    assert error <= 2.2e-3 * roundings**0.5
