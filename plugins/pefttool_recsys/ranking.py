"""HR@k and NDCG@k with one right item a user: a formula each, as in SASRec's evaluation, over the whole catalogue."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ranks(recommended: Sequence[Sequence[str]], wanted: Sequence[str]) -> list[int | None]:
    """The place (from 0) of each wanted item among those recommended, or None."""
    return [list(r).index(w) if w in r else None for r, w in zip(recommended, wanted, strict=True)]


def hit_rate(found: Sequence[int | None], k: int) -> float:
    """The share of users whose item is among the first `k`."""
    return sum(rank is not None and rank < k for rank in found) / len(found)


def ndcg(found: Sequence[int | None], k: int) -> float:
    """The mean of 1 / log2(place + 2): with one right item a user the ideal is 1."""
    return sum(1 / math.log2(rank + 2) for rank in found if rank is not None and rank < k) / len(found)
