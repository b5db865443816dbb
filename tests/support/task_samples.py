"""Good rows of every registered task, and the tiny model it runs on. A new task adds a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples_audio
import samples_recsys
import samples_series
import samples_tabular
import samples_text
import samples_vision

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """`rows(folder)` gives at least three rows of different lengths, and writes the files that they name into `folder`.

    `kind` is one of `pefttool.testing.models.MAKERS`.
    """

    rows: Callable[[Path], Rows]
    kind: str


def _texts(folder: Path) -> Rows:
    return [{"text": t} for t in ("to be or not to be", "shorter one", "a line of yet another length")]


def _conversations(folder: Path) -> Rows:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("hi", "hello there"), ("2+2?", "4"), ("a longer question, please", "yes"))
    ]


def _classified(folder: Path) -> Rows:
    return [
        {"text": "good stuff", "label": "pos"},
        {"text": "really quite bad, from its first minute to its last", "label": "neg"},
        {"text": "fine, I suppose", "label": "pos"},
    ]


def _translations(folder: Path) -> Rows:
    pairs = (
        ("one", "uno"),
        ("a longer one, with more to say", "uno más largo, y más que decir"),
        ("two", "dos y más"),
    )
    return [{"source": source, "target": target} for source, target in pairs]


def _preferences(folder: Path) -> Rows:
    answers = (("hi", "hello", "go away"), ("why?", "because of this and of that", "no"), ("a question", "y", "x"))
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in answers]


#: Kinds of models that a task runs on beside that of its sample: heads, or outputs, of another sort.
OTHER_KINDS: dict[str, tuple[str, ...]] = {
    "image-classification": ("convolutional",),
    "object-detection": ("detector",),
    "question-answering": ("encoder-decoder",),
    "speech-recognition": ("ctc",),
    "text-classification": ("decoder",),
    "token-classification": ("decoder",),
}
SAMPLES: dict[str, Sample] = {
    "series-classification": Sample(samples_series.classified, "series"),
    "series-forecasting": Sample(samples_series.windows, "series"),
    "causal-lm": Sample(_texts, "decoder"),
    "chat": Sample(_conversations, "decoder"),
    "preference": Sample(_preferences, "decoder"),
    "seq2seq": Sample(_translations, "encoder-decoder"),
    "masked-lm": Sample(samples_text.plain, "masked"),
    "speech-recognition": Sample(samples_audio.spoken, "speech"),
    "question-answering": Sample(samples_text.questions, "encoder"),
    "image-classification": Sample(samples_vision.classified, "vision"),
    "object-detection": Sample(samples_vision.detected, "vision"),
    "next-item": Sample(samples_recsys.next_items, "decoder"),
    "tabular-classification": Sample(samples_tabular.tabular, "encoder"),
    "text-classification": Sample(_classified, "encoder"),
    "token-classification": Sample(samples_text.entities, "encoder"),
}
