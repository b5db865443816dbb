"""How near generated texts are to the expected ones: chrF and BLEU by sacrebleu, ROUGE in a few lines. All 0 to 100.

rouge-score, the library that papers cite, has had no release since 2022 and pulls in nltk and absl. Its numbers without
stemming are those of the functions below on English; and here a word may be of any script.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

Metric = Literal["chrf", "bleu", "rouge"]
METRICS: tuple[Metric, ...] = ("chrf", "bleu", "rouge")
WORD = re.compile(r"[^\W_]+")


def missing() -> str | None:
    """What has to be installed before anything can be scored, or None."""
    if importlib.util.find_spec("sacrebleu") is not None:
        return None
    return 'chrF and BLEU are computed by sacrebleu, which is not installed: pip install "pefttool[text]"'


def scores(
    given: Sequence[str], expected: Sequence[str], metrics: Sequence[Metric] = METRICS, language: str | None = None
) -> dict[str, float]:
    """Corpus chrF and BLEU, and mean ROUGE-1, -2 and -L (F1). `language` is the texts', where it is known: Chinese and
    Korean are split otherwise for BLEU. chrF, which decides between checkpoints, is always there."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found = {"chrf": CHRF().corpus_score(list(given), [list(expected)]).score}
    if "bleu" in metrics:
        tokenizer = {"zh": "zh", "ko": "char", "ja": "char"}.get((language or "")[:2], "13a")
        found["bleu"] = BLEU(tokenize=tokenizer, force=True).corpus_score(list(given), [list(expected)]).score
    if "rouge" in metrics:
        each = [rouge(g, e) for g, e in zip(given, expected, strict=True)]
        found |= {name: 100 * sum(e[name] for e in each) / len(each) for name in each[0]}
    return found


def rouge(given: str, expected: str) -> Mapping[str, float]:
    """`rouge1`, `rouge2` (shared words and pairs of words) and `rougeL` (longest common subsequence), F1, 0 to 1."""
    a, b = (WORD.findall(text.lower()) for text in (given, expected))
    pairs = [list(pairwise(words)) for words in (a, b)]
    return {
        "rouge1": _f1(_shared(a, b), len(a), len(b)),
        "rouge2": _f1(_shared(*pairs), *map(len, pairs)),
        "rougeL": _f1(_common_subsequence(a, b), len(a), len(b)),
    }


def _shared(a: Sequence[object], b: Sequence[object]) -> int:
    return (Counter(a) & Counter(b)).total()


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest sequence of words that stand in both, in order, not always side by side."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _f1(shared: int, given: int, expected: int) -> float:
    return 2 * shared / (given + expected) if shared else 0.0
