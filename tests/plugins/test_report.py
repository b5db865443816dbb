"""What the terminal says of a run's data."""

from __future__ import annotations

import pytest

from pefttool.api import events
from pefttool_report.console import Reporter


@pytest.mark.parametrize(
    ("trained", "said"), [(50, "50% of them trained"), (100, "100% of them trained"), (600, "600 values to learn")]
)
def test_no_share_is_more_than_the_whole(trained: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Six values to forecast for a token of the past are no 600% of it."""
    Reporter().on_event(
        events.DataReady(train_rows=9, eval_rows=1, trained_tokens=trained, tokens=100, truncated_rows=0, preview="")
    )
    assert f"100 tokens, {said}; 0 rows truncated" in capsys.readouterr().err
