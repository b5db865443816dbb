"""Adapters that put tokens in front of the text: the suite holds them to the text's positions."""

from __future__ import annotations

import pytest
from prompt_tuning import CutsTheExtra, PromptTuning, SaysNothing

from pefttool.testing import ADAPTER_CHECKS, AdapterCase, ContractViolation, adapter_cases


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
def test_one_that_declares_its_length_passes(check: str) -> None:
    ADAPTER_CHECKS[check](AdapterCase(PromptTuning(), "decoder"))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (CutsTheExtra, "logits differ by .* do not cut or move them, but declare added_positions"),
        (SaysNothing, r"answers \d+ tokens with the logits of \d+ positions: declare added_positions"),
    ],
)
def test_one_that_does_not_is_caught(broken: type[PromptTuning], says: str) -> None:
    with pytest.raises(ContractViolation, match=says):
        ADAPTER_CHECKS["positions_are_the_texts"](AdapterCase(broken(), "decoder"))


def test_a_model_whose_task_counts_otherwise_is_left_out() -> None:
    cases, refused = adapter_cases(PromptTuning())
    assert [case.kind for case in cases] == ["decoder"]
    assert "puts 5 positions before the text" in next(iter(refused.values()))
