"""How far two models' answers are apart: by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pefttool.inference.agreement import compare

A = {"logits": torch.tensor([[2.0, 0.0], [0.0, 4.0]])}


def test_the_same_answers_agree() -> None:
    found = compare([A, A], [A, A])
    assert (found.rows, found.largest, found.scale, found.divergence, found.top1) == (2, 0, 4, 0, 1)
    assert found.effect is None and found.share is None


def test_differences_of_logits() -> None:
    b = {"logits": torch.tensor([[0.0, 2.0], [0.0, 4.0]])}
    found = compare([A], [b])
    p = 1 / (1 + math.exp(-2))
    assert found.largest == 2 and found.relative == 0.5 and found.top1 == 0.5
    assert found.typical == pytest.approx(math.sqrt(8 / 20))
    assert found.within(0.7) and not found.within(0.6)
    assert found.divergence == pytest.approx((p * 2 - (1 - p) * 2) / 2)


def test_values_have_no_probabilities() -> None:
    values = {"prediction_outputs": torch.ones(1, 4, 2)}
    found = compare([values], [{"prediction_outputs": torch.full((1, 4, 2), 1.5)}])
    assert (found.largest, found.divergence, found.top1) == (0.5, None, None)
    one_output = {"logits": torch.ones(3, 1)}
    assert compare([one_output], [one_output]).divergence is None
    assert compare([A], [A], classes=False).divergence is None
    boxed = {**A, "pred_boxes": torch.zeros(2, 4)}
    assert compare([boxed], [boxed]).divergence is None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_infinitely_far(wrong: float) -> None:
    b = {"logits": torch.tensor([[2.0, 0.0], [0.0, wrong]])}
    assert compare([A], [b]).largest == math.inf
    assert compare([b], [A]).largest == math.inf


def test_a_class_that_is_masked_in_both_is_no_difference() -> None:
    masked = {"logits": torch.tensor([[1.0, float("-inf"), 0.0]])}
    found = compare([masked], [masked])
    assert (found.largest, found.divergence, found.top1, found.scale) == (0, 0, 1, 1)


def test_a_single_output_may_not_be_far_off() -> None:
    a = torch.ones(1, 1000)
    b = a.clone()
    b[0, 7] += 0.6
    found = compare([{"values": a}], [{"values": b}])
    assert found.typical < 0.02 and not found.within(0.1) and found.within(0.13)


@pytest.mark.parametrize(("merged", "share"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (2.0, 2.0), (-1.0, -1.0)])
def test_the_share_of_the_effect(merged: float, share: float) -> None:
    base = {"logits": torch.randn(5, 7)}
    step = torch.randn(5, 7)
    found = compare([{"logits": base["logits"] + step}], [{"logits": base["logits"] + merged * step}], [base])
    assert found.share == pytest.approx(share, abs=1e-5)
    assert found.effect == pytest.approx(float(step.abs().mean()), rel=1e-4)


def test_noise_does_not_hide_that_the_adapter_is_there() -> None:
    """Noise of the effect's own size in every answer: a right merge is above a half, a lost one below."""
    generator = torch.Generator().manual_seed(0)

    def noisy(value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": value + torch.randn(200, 50, generator=generator)}

    plain, step = torch.randn(200, 50, generator=generator), torch.randn(200, 50, generator=generator)
    right = compare([noisy(plain + step)], [noisy(plain + step)], [noisy(plain)])
    lost = compare([noisy(plain + step)], [noisy(plain)], [noisy(plain)])
    assert right.share is not None and right.share > 0.6
    assert lost.share is not None and lost.share < 0.4


def test_other_tensors_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"logits \[2, 2\].*nothing"):
        compare([A], [{}])
    with pytest.raises(ValueError):
        compare([A, A], [A])
