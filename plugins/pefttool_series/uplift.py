"""How well predicted uplift orders people: the areas under Radcliffe's Qini curve and under the uplift curve.

The kept libraries for this (causalml, scikit-uplift's successors) bring plotting and boosting packages along, or are no
longer maintained; these are the two definitions, some lines each, tested against values worked out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def qini(uplift: Sequence[float], treated: Sequence[bool], responded: Sequence[bool]) -> float:
    """The area between the Qini curve and that of a random order, in responses per treated person: 0 is chance.

    The curve at the k people of highest predicted uplift: responses of the treated among them, less those of the
    untreated, scaled to as many people. People of equal uplift are taken together. NaN if one of the groups is empty.
    """
    points = _curve(uplift, treated, responded)
    if points is None:
        return math.nan
    curve = [(n, rt - rc * (nt / nc) if nc else float(rt)) for n, nt, nc, rt, rc in points]
    return _area(curve) / max(sum(map(bool, treated)), 1)


def auuc(uplift: Sequence[float], treated: Sequence[bool], responded: Sequence[bool]) -> float:
    """The area between the uplift curve and that of a random order, in responses per person: 0 is chance.

    The curve at the k people of highest predicted uplift: the difference of the groups' response rates among them,
    times k / N. NaN if one of the groups is empty.
    """
    points = _curve(uplift, treated, responded)
    if points is None:
        return math.nan
    everyone = len(uplift)
    curve = [(n, (rt / nt - rc / nc) * n / everyone if nt and nc else 0.0) for n, nt, nc, rt, rc in points]
    return _area(curve)


def _curve(
    uplift: Sequence[float], treated: Sequence[bool], responded: Sequence[bool]
) -> list[tuple[int, int, int, int, int]] | None:
    """(people, treated, untreated, responses of each) after each group of equal uplift, highest first."""
    order = sorted(range(len(uplift)), key=lambda i: -uplift[i])
    given = sum(map(bool, treated))
    if not 0 < given < len(order):
        return None
    points, counts = [(0, 0, 0, 0, 0)], [0, 0, 0, 0]
    for position, i in enumerate(order, 1):
        arm = 0 if treated[i] else 1
        counts[arm] += 1
        counts[2 + arm] += bool(responded[i])
        if position == len(order) or uplift[order[position]] != uplift[i]:
            points.append((position, counts[0], counts[1], counts[2], counts[3]))
    return points


def _area(curve: Sequence[tuple[int, float]]) -> float:
    """Between a curve over numbers of people, taken as shares, and the straight line to its end."""
    everyone, end = curve[-1]
    under = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    return under / everyone - end / 2
