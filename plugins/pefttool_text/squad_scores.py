"""Exact match and F1 as SQuAD defines them, as shares (SQuAD prints them times 100)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(given: str, accepted: Sequence[str]) -> float:
    """1 if `given` equals one of the accepted answers; an empty one means that there is none."""
    return float(any(normalise(given) == normalise(text) for text in accepted or ("",)))


def f1(given: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, against the accepted answer that it is nearest to."""
    return max(_f1(normalise(given).split(), normalise(text).split()) for text in accepted or ("",))


def _f1(given: Sequence[str], accepted: Sequence[str]) -> float:
    if not given or not accepted:
        return float(given == accepted)
    both = (Counter(given) & Counter(accepted)).total()
    return 2 * both / (len(given) + len(accepted))
