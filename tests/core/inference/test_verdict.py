"""Which evaluation is the best, and what is said of the one that is delivered."""

from __future__ import annotations

from typing import Any

import pytest

from pefttool.inference import verdict

NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "best", "better"),
    [
        ((0.8, 0.5), None, True),
        ((0.9, 0.9), (0.8, 0.5), True),
        ((0.7, 0.1), (0.8, 0.5), False),
        ((0.8, 0.4), (0.8, 0.5), True),  # a tie goes to the lower loss
        ((0.8, 0.5), (0.8, 0.5), False),  # then to the earlier step
        ((0.8, NAN), (0.8, 0.5), False),
        ((NAN, 0.1), (0.8, 0.5), False),
        ((0.1, 0.9), (NAN, 0.1), True),
        ((NAN, 0.1), (NAN, 0.1), True),
    ],
)
def test_the_best_evaluation(found: Any, best: Any, better: bool) -> None:
    def metrics(pair: Any) -> Any:
        return None if pair is None else {"accuracy": pair[0], "loss": pair[1]}

    assert verdict.is_better(metrics(found), metrics(best), "accuracy", "max") is better


def test_less_is_better_for_a_loss_alone() -> None:
    assert verdict.is_better({"loss": 1.0}, {"loss": 2.0}, "loss", "min")
    assert not verdict.is_better({"loss": 2.0}, {"loss": 2.0}, "loss", "min")


@pytest.mark.parametrize(("after", "improved"), [(0.5, False), (0.6, True), (0.4, False), (NAN, False)])
def test_an_adapter_that_is_no_better_is_told(after: float, improved: bool) -> None:
    told: list[Any] = []
    before = {"accuracy": 0.5, "loss": 1.0}
    found = verdict.tell(before, {"accuracy": after, "loss": 1.0}, "accuracy", "max", told.append)  # type: ignore[arg-type]
    assert found is improved
    assert [event.level for event in told] == ([] if improved else ["warning"])
    assert improved or f"(accuracy 0.5000 before, {after:.4f} after)" in told[0].text


def test_few_rows_are_told_where_they_choose() -> None:
    assert verdict.few_rows(20, 4) is None and verdict.few_rows(3, 1) is None
    assert str(verdict.few_rows(19, 2)).startswith("19 held-out rows choose the best of 2 evaluations")
    assert str(verdict.few_rows(1, 2)).startswith("1 held-out row chooses")
