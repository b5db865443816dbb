"""A question and a passage as windows of tokens, and the best answer over all windows of a passage.

W windows, T tokens of the longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool_text.encoder import TYPES

if TYPE_CHECKING:
    from torch import Tensor

#: Answers of each window that are compared with those of the others.
BEST = 20
Span = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The question and a piece of the passage.

    `offsets` are the places of the piece's tokens in the passage, in characters; None for tokens of the question and
    special ones. Position `null` is what a model points to where the window has no answer.
    """

    input_ids: tuple[int, ...]
    types: tuple[int, ...] | None
    offsets: tuple[Span | None, ...]
    null: int

    def positions(self, answer: Span) -> Span | None:
        """First and last token of the characters `answer`; None if the window does not hold all of them."""
        inside = [i for i, place in enumerate(self.offsets) if place and place[0] < answer[1] and place[1] > answer[0]]
        if not inside or not self._reaches(inside[0], answer[0], 0) or not self._reaches(inside[-1], answer[1], 1):
            return None
        return inside[0], inside[-1]

    def _reaches(self, token: int, character: int, side: int) -> bool:
        place = self.offsets[token]
        assert place is not None
        beyond = place[side] <= character if side == 0 else place[side] >= character
        return beyond

    @property
    def example(self) -> dict[str, Any]:
        encoded: dict[str, Any] = {"input_ids": list(self.input_ids), "length": len(self.input_ids)}
        if self.types is not None:
            encoded[TYPES] = list(self.types)
        return encoded


def windows(question: str, context: str, processor: Any, longest: int, stride: int) -> tuple[list[Window], bool]:
    """(windows of at most `longest` tokens that share `stride` tokens of the passage, whether anything was cut).

    A question that would take more than half of a window loses its end.
    """
    asked = processor(question, add_special_tokens=False, return_offsets_mapping=True)
    special = int(processor.num_special_tokens_to_add(pair=True))
    room = longest - special
    most, length = room // 2, len(asked["input_ids"])
    cut = length > most
    if cut:
        question = question[: asked["offset_mapping"][most - 1][1]] if most else ""
        length = most
    encoded = processor(
        question,
        context,
        truncation="only_second",
        max_length=longest,
        stride=max(0, min(stride, (room - length) // 2)),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        belongs = encoded.sequence_ids(i)
        offsets = tuple(
            (int(place[0]), int(place[1])) if part == 1 and place[1] > place[0] else None
            for part, place in zip(belongs, encoded["offset_mapping"][i], strict=True)
        )
        cls = processor.cls_token_id
        null = ids.index(cls) if cls in ids else 0
        found.append(Window(tuple(ids), tuple(encoded[TYPES][i]) if TYPES in encoded else None, offsets, null))
    return found, cut or len(found) > 1


def choose(found: Sequence[Window], answer: Span | None, *parts: object) -> tuple[Window, Span] | None:
    """A window to train with and the positions of its first and last token of the answer.

    Of several that hold the whole answer a hash over `parts` (the run's seed, the row) takes one: answers then do not
    always stand at the same place, and a row is the same in every epoch and after a restart. None: no window holds it.
    """
    if answer is None:
        fitting = [(window, (window.null, window.null)) for window in found]
    else:
        standing = _standing(found, answer)
        fitting = [(w, positions) for w in found if (positions := w.positions(standing)) is not None]
    if not fitting:
        return None
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return fitting[int.from_bytes(digest[:8], "big") % len(fitting)]


def _standing(found: Sequence[Window], answer: Span) -> Span:
    """The answer without what no token stands for at its ends: accents that are stripped, marks without a width."""
    places = [p for w in found for p in w.offsets if p and p[0] < answer[1] and p[1] > answer[0]]
    if not places:
        return answer
    return max(answer[0], min(place[0] for place in places)), min(answer[1], max(place[1] for place in places))


@dataclass(frozen=True)
class Answer:
    """Characters `span` of the passage, or None for no answer; `score` is its share among the best answers."""

    span: Span | None
    score: float


def best_answer(
    found: Sequence[Window], starts: Tensor, ends: Tensor, longest_answer: int, may_be_none: bool
) -> Answer:
    """The answer with the largest sum of start and end logits over all windows of a passage: `[W, T]` float32.

    Two windows share tokens: an answer that both have counts once, with its larger sum. Where there may be no answer,
    that competes with the sum at `null` of the window that is least for it, as SQuAD 2 has it.
    """
    import torch

    candidates: dict[Span | None, float] = {}
    for window, start, end in zip(found, starts, ends, strict=True):
        width = len(window.offsets)
        inside = torch.tensor([place is not None for place in window.offsets], device=start.device)
        sums = start[:width, None] + end[None, :width]
        allowed = inside[:, None] & inside[None, :]
        allowed = allowed.triu() & ~allowed.triu(longest_answer)
        sums = sums.masked_fill(~allowed, -torch.inf).flatten()
        values, places = sums.topk(min(BEST, len(sums)))
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if value > -float("inf"):
                first, last = window.offsets[place // width], window.offsets[place % width]
                assert first is not None and last is not None
                span = (first[0], last[1])
                candidates[span] = max(value, candidates.get(span, value))
    if may_be_none or not candidates:
        sums = [float(s[w.null] + e[w.null]) for w, s, e in zip(found, starts, ends, strict=True)]
        candidates[None] = min(sums)
    best = sorted(candidates.items(), key=lambda item: -item[1])[:BEST]
    shares = torch.tensor([value for _, value in best]).softmax(0)
    return Answer(best[0][0], float(shares[0]))
