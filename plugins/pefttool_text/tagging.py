"""Tags of words and the entities that they spell; from words to tokens and back.

BIO (IOB2): `B-type` begins an entity, `I-type` goes on with it, `O` is outside. As in CoNLL's own evaluation an
`I-type` that follows another type, or nothing, begins an entity, too.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from pefttool.toolkit.class_names import Numbered, in_order
from pefttool.toolkit.columns import most

Scheme = Literal["bio", "plain"]
#: The tag of a word that belongs to no entity.
OUTSIDE = "O"
BIO = re.compile(r"[BI]-.+", re.DOTALL)
#: Letters of other schemes (BIOES, BMES, BILOU), whose tags would be taken for plain ones.
OTHER_LETTERS = re.compile(r"[ESLUMW]-.+", re.DOTALL)
#: Entities in whatever scheme and hand: also without a type (`B`), with another mark (`B_PER`), in small letters, or
#: with the letter behind (`PER-B`).
OTHER_SCHEMES = re.compile(
    rf"{OTHER_LETTERS.pattern}|[BIESLUMW]([_:/].+)?|[biesluw][-_:/].+|.+[-_:/][BIESLUMW]", re.DOTALL
)


class Entity(NamedTuple):
    """Words `start` to `end` (not counted itself) are one entity of this type."""

    type: str
    start: int
    end: int


def entities(tags: Sequence[str | None]) -> list[Entity]:
    """The entities of a sentence in BIO, first to last. None (a word without a tag) is outside."""
    found: list[Entity] = []
    current, start = None, 0
    for i, tag in enumerate([*tags, None]):
        prefix, _, kind = (tag or OUTSIDE).partition("-")
        begins = prefix == "B" or (prefix == "I" and kind != current)
        if current is not None and (begins or prefix == OUTSIDE):
            found.append(Entity(current, start, i))
            current = None
        if begins:
            current, start = kind, i
    return found


def scheme_of(tags: Iterable[str]) -> Scheme | None:
    """`bio` or `plain`, from every tag as often as it occurs; None where there are tags of another scheme for entities,
    such as BIOES.

    Where a clear majority is of BIO, the few others are mistyped: they do not make all of them plain.
    """
    named = Counter(tags)
    outside = named.pop(OUTSIDE, 0)
    odd = [tag for tag in named if not BIO.fullmatch(tag)]
    total = named.total()
    usual = total - sum(named[tag] for tag in odd)
    if odd and usual and all(map(OTHER_LETTERS.fullmatch, odd)):
        return None
    if most(usual, total):
        return "bio"
    return None if odd and (outside or usual) and all(map(OTHER_SCHEMES.fullmatch, odd)) else "plain"


def tag_names(tags: set[str], scheme: Scheme) -> tuple[str, ...]:
    """The classes of the head. In BIO what begins can go on: B- and I- of every type, behind `O`. An order that the
    file has comes first."""
    if scheme == "plain":
        return in_order(tags)
    types = sorted({tag.partition("-")[2] for tag in tags - {OUTSIDE}})
    every = (OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    own = in_order(tags) if all(isinstance(tag, Numbered) for tag in tags) else ()
    return (*own, *(tag for tag in every if tag not in own))


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each word the first of its tokens; None where there is none: cut off, or nothing that the tokenizer knows.

    `offsets` are the tokens' places in the words joined by single spaces; special tokens have empty ones.
    """
    ends = list(accumulate(len(word) + 1 for word in words))
    first: list[int | None] = [None] * len(words)
    for token, (start, end) in enumerate(offsets):
        if end <= start:
            continue
        # Some tokenizers count the space before a word as the token's: its last character decides.
        word = bisect_right(ends, end - 1)
        if word < len(words) and end - 1 < ends[word] - 1 and first[word] is None:
            first[word] = token
    return first


def scores(truth: Sequence[Sequence[str]], given: Sequence[Sequence[str | None]], scheme: Scheme) -> dict[str, float]:
    """`accuracy` over words; in BIO also `precision`, `recall` and `f1` over whole entities, type and both ends: NaN
    where there is no entity, nor was one predicted.

    Our own, because seqeval, which everybody uses for it, has had no release since 2020 (the test has its numbers).
    """
    words = sum(map(len, truth))
    right = sum(a == b for t, g in zip(truth, given, strict=True) for a, b in zip(t, g, strict=True))
    found = {"accuracy": right / words if words else 0.0}
    if scheme == "plain":
        return found
    true, predicted = ({(i, e) for i, tags in enumerate(rows) for e in entities(tags)} for rows in (truth, given))
    if not true and not predicted:
        return {**dict.fromkeys(("precision", "recall", "f1"), math.nan), **found}
    both = len(true & predicted)
    precision, recall = (both / len(part) if part else 0.0 for part in (predicted, true))
    return {"precision": precision, "recall": recall, "f1": 2 * both / (len(true) + len(predicted)), **found}
