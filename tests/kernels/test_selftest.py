"""The self-test: it passes here, and every kind of wrong result makes it fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pefttool_kernels import backends, low_rank
from pefttool_kernels.dispatch import BACKENDS
from pefttool_kernels.selftest import cases, loss, selftest
from pefttool_kernels.selftest.cases import KINDS, Check, worst

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return selftest.run(CPU)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind, one dtype: enough to see that a fault is found."""
    monkeypatch.setattr(selftest, "KINDS", {"nf4 nested": KINDS["nf4 nested"]})
    monkeypatch.setattr(selftest, "DTYPES", (torch.bfloat16,))


def verdict(backend: str) -> selftest.Verdict:
    return next(found for found in selftest.verdicts(selftest.run(CPU)) if found.backend == backend)


def test_everything_is_right_here(checks: list[Check]) -> None:
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def test_every_backend_has_a_verdict_and_what_cannot_run_says_why(checks: list[Check]) -> None:
    found = {verdict.backend: verdict for verdict in selftest.verdicts(checks)}
    assert list(found) == [*BACKENDS, "cross_entropy"]
    assert (
        found["triton"].ok is None and found["triton"].text == "not here: it runs on a GPU, the tensors are on the CPU"
    )
    assert found["tiles"].ok and found["tiles"].text.startswith("correct: 45 checks, worst error ")


def test_tiles_are_checked_for_every_kind_dtype_and_direction(checks: list[Check]) -> None:
    found = {(check.what, check.dtype, check.direction) for check in checks if check.backend == "tiles"}
    assert found == {
        (kind, dtype, direction)
        for kind in KINDS
        for dtype in ("bfloat16", "float16", "float32")
        for direction in ("forward", "backward", "adapter")
    }


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda compute: lambda *arguments: compute(*arguments) * factor


def without_bias(compute: Any) -> Any:
    return lambda x, weight, bias, u, b: compute(x, weight, None, u, b)


def without_update(compute: Any) -> Any:
    return lambda x, weight, bias, u, b: compute(x, weight, bias, None, None)


def last_row_unwritten(compute: Any) -> Any:
    def wrong(*arguments: Any) -> Tensor:
        result = compute(*arguments)
        output = torch.empty(result.shape, dtype=result.dtype)
        output[:-1] = result[:-1]
        return output

    return wrong


def raising(compute: Any) -> Any:
    def wrong(*arguments: Any) -> Tensor:
        raise RuntimeError("no such\ninstruction")

    return wrong


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("table", "fault", "words"),
    [
        ("_FORWARD", scaled(1.01), "forward nf4 nested bfloat16: error 1.0e-02, allowed 2.2e-03"),
        ("_FORWARD", without_bias, "forward nf4 nested bfloat16: error"),
        ("_FORWARD", without_update, "forward nf4 nested bfloat16: error"),
        ("_FORWARD", last_row_unwritten, "forward nf4 nested bfloat16: error nan"),
        ("_FORWARD", raising, "forward nf4 nested bfloat16: RuntimeError: no such instruction"),
        ("_BACKWARD", scaled(1.01), "backward nf4 nested bfloat16: error 1.0e-02"),
        ("_BACKWARD", last_row_unwritten, "backward nf4 nested bfloat16: error nan"),
    ],
)
def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch, table: str, fault: Any, words: str) -> None:
    products = getattr(backends, table)
    monkeypatch.setitem(products, "tiles", fault(products["tiles"]))
    found = verdict("tiles")
    assert found.ok is False
    assert "WRONG in" in found.text and words in found.text
    assert verdict("bitsandbytes").ok


@pytest.mark.usefixtures("small")
def test_a_wrong_gradient_of_the_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = low_rank.gather
    monkeypatch.setattr(low_rank, "gather", lambda left, x: gather(left, x) * 1.001)
    assert "linear_4bit adapter nf4 nested bfloat16: error 1.0e-03" in verdict("tiles").text


@pytest.mark.usefixtures("small")
def test_one_bit_of_one_dequantised_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    dequantise = backends.dequantized

    def wrong(*arguments: Any) -> Tensor:
        weight = dequantise(*arguments).clone()
        weight.view(torch.int16)[0, 0] ^= 1
        return weight

    monkeypatch.setattr(backends, "dequantized", wrong)
    (found,) = [check for check in selftest.run(CPU) if check.operator == "dequantize_4bit"]
    assert not found.ok and found.error is not None and 0 < found.error < 1e-3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("factor", "part"), [(1.01, "forward"), (1.0, "backward")])
def test_a_wrong_loss_is_found(monkeypatch: pytest.MonkeyPatch, factor: float, part: str) -> None:
    right = loss.linear_cross_entropy

    def wrong(hidden: Tensor, *rest: Any) -> Tensor:
        if part == "backward":  # the value stays, the gradient loses a hundredth
            hidden = hidden.detach() * 0.01 + hidden * 0.99 if hidden.dtype == torch.float32 else hidden
        return right(hidden, *rest) * factor

    monkeypatch.setattr(loss, "linear_cross_entropy", wrong)
    failed = [check for check in selftest.run(CPU) if not check.ok]
    assert failed and all(check.backend == "cross_entropy" for check in failed)
    assert part in {check.direction for check in failed}


def test_a_nan_is_never_right_wherever_it_comes() -> None:
    assert not Check("tiles", error=math.nan, allowed=1.0).ok
    assert not Check("tiles").ok
    for errors in ([math.nan, 0.0], [0.0, math.nan]):
        assert math.isnan(worst(errors))
    assert Check("tiles", error=math.nan).record()["error"] is None


@pytest.mark.usefixtures("small")
def test_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> list[object]:
        matmul = torch.backends.cuda.matmul
        return [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
        ]

    before = settings()
    selftest.run(CPU)
    assert settings() == before
    monkeypatch.setattr(selftest, "make", raising(None))
    with pytest.raises(RuntimeError, match="no such"):
        selftest.run(CPU)
    assert settings() == before


def test_new_memory_is_nan_meanwhile() -> None:
    with selftest.poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.ones(2, dtype=torch.bfloat16).new_empty(3, 4).isnan().all()


def test_cases_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = cases.make("fp4 flat", torch.float16, 3, 70, 128)
    torch.manual_seed(2)
    second = cases.make("fp4 flat", torch.float16, 3, 70, 128)
    assert torch.equal(first.x, second.x) and torch.equal(first.dequantised, second.dequantised)
