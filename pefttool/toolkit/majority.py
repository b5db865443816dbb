"""What most are decides what all should be: then the few others are mistakes, to be told one by one."""

from __future__ import annotations

MOST = 2 / 3


def most(count: int, total: int) -> bool:
    """Whether `count` of `total` is a clear majority."""
    return count >= MOST * total > 0
