"""Word and character error rates, by jiwer, of texts that were made alike first."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

Normalize = Literal["basic", "english", "none"]


def normalizer(kind: Normalize) -> Callable[[str], str]:
    """What is done to both texts before they are compared: by the normalisers that Whisper was published with, but for
    marks, which its basic one removes: they are vowels in the scripts of India, Thailand and others.

    basic    lower case; punctuation, symbols and what stands in brackets removed
    english  the same, without diacritics, and contractions, titles and numbers spelt in one way (`don't` and `do not`,
             `two` and `2`)
    none     texts as they are, but for white space
    """
    if kind == "none":
        return lambda text: " ".join(text.split())
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    # British and American spellings come from a list that models carry, and few do: they are left as they are.
    made: Any = EnglishTextNormalizer({}) if kind == "english" else BasicTextNormalizer()
    if kind == "basic":
        made.clean = _without_symbols
    return lambda text: " ".join(made(text).split())


def _without_symbols(text: str) -> str:
    """Punctuation and symbols as spaces; marks stay with their letters."""
    composed = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(c)[0] in "SP" else c for c in composed)


def error_rates(truth: Sequence[str], given: Sequence[str], kind: Normalize) -> tuple[float, float]:
    """(WER, CER): edits over words, or characters, of all texts together. An empty truth counts what was invented; NaN
    where all are empty, once they are made alike.
    """
    import jiwer

    same = normalizer(kind)
    truths, answers = [same(text) for text in truth], [same(text) for text in given]
    if not any(truths):
        return math.nan, math.nan
    return float(jiwer.wer(truths, answers)), float(jiwer.cer(truths, answers))
