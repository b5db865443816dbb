"""JSON of whatever a column of data holds."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

from pefttool.api.values import Row
from pefttool.files import fingerprint, strict_json

NUMBER = UUID("12345678123456781234567812345678")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        (np.float32("inf"), None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.datetime64("2024-01-02T03:04:05.000000006"), "2024-01-02T03:04:05.000000006"),
        (torch.tensor([1.0, float("nan")]), [1.0, None]),
        (Decimal("1.10"), "1.10"),
        (NUMBER, str(NUMBER)),
        (timedelta(days=1), "1 day, 0:00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (b"\x01\x02", "0102"),
        (bytes(33), "33 bytes"),
        (Path("a/b"), "a/b"),
        ({"b", "a"}, ["a", "b"]),
        ({date(2024, 1, 2): {1: (1, 2)}}, {"2024-01-02": {"1": [1, 2]}}),
        ("half \ud83d", "half \ud83d"),
        (1 << 70, 1 << 70),
    ],
)
def test_any_value_is_written(value: Any, written: Any) -> None:
    text = strict_json.dumps({"value": value})
    assert json.loads(text.encode("utf-8")) == {"value": written}


def test_rows_with_such_values_have_a_lasting_hash() -> None:
    """Told from text that looks the same: what is encoded of one is not what is encoded of the other."""
    alike = [date(2024, 1, 2), "2024-01-02", {"date": "2024-01-02"}, b"2024-01-02", Decimal("1.1"), 1.1, "1.1", NUMBER]
    hashes = {fingerprint.rows([Row({"value": value})]) for value in alike}
    assert len(hashes) == len(alike)
    with pytest.raises(fingerprint.Unknowable):
        fingerprint.rows([Row({"value": object()})])
