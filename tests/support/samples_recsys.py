"""Good rows of next-item, and a log of interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LOG = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\ta\t3\t20\n8\tb\t5\t1\n7\tc\t4\t10\n"
LOGGED: list[dict[str, Any]] = [
    {"user": "7", "items": ["c", "a"], "timestamps": [10.0, 20.0], "ratings": [4.0, 3.0]},
    {"user": "8", "items": ["b"], "timestamps": [1.0], "ratings": [5.0]},
]


def next_items(folder: Path) -> list[dict[str, Any]]:
    return [
        {"user": "1", "items": ["a", "b"], "next": "c"},
        {"user": "2", "items": [*"cabdefghijk"]},
        {"user": "3", "items": ["k", "a", "b", "e"], "next": "never seen before"},
    ]
