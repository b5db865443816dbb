"""Good rows of tabular-classification: numbers as numbers and as text, categories, and missing values."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tabular(folder: Path) -> list[dict[str, Any]]:
    return [
        {"age": 41, "balance": "1200.5", "job": "clerk", "loan": True, "class": "no"},
        {"age": 29, "balance": "-80", "job": "miner", "loan": False, "class": "yes"},
        {"age": None, "balance": "310", "job": "clerk", "loan": True, "class": "no"},
        {"age": 66, "balance": "", "job": None, "loan": False, "class": "yes"},
    ]
