"""A chat model learns to answer as a support desk does, and to prefer the right answer."""

from __future__ import annotations

import re
from functools import partial

from experiment import Experiment, Rows
from unigram import NAME, chat_loss

SMOLLM2 = "example:smollm2-135m-instruct"
MINIATURE = {"data.max_train_rows": 8, "data.max_eval_rows": 4, "train.epochs": 1, "generation.max_new_tokens": 4}


def overlap(train: Rows, held_out: Rows) -> float:
    """How often the chosen answer shares more words with the question than the rejected one does; ties count half."""
    found = 0.0
    for row in held_out:
        chosen, rejected = (_shared(str(row["prompt"]), str(row[name])) for name in ("chosen", "rejected"))
        found += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return found / len(held_out)


def _shared(question: str, answer: str) -> int:
    words = [set(re.findall(r"\w{4,}", text.lower())) for text in (question, answer)]
    return len(words[0] & words[1])


EXPERIMENTS = [
    Experiment(
        name="support",
        recipe="support.yaml",
        metric="loss",
        direction="min",
        trivial=(NAME, partial(chat_loss, SMOLLM2)),
        before="zero-shot",
        seeds=(1, 2),
        miniature=MINIATURE,
    ),
    Experiment(
        name="preference",
        recipe="preference.yaml",
        metric="likelihood_accuracy",
        direction="max",
        trivial=("the answer that shares more words with the question", overlap),
        before="zero-shot",
        scratch=None,
        why_no_scratch="preferences refine a model that answers; with random weights there is none",
        seeds=(1, 2),
        miniature=MINIATURE,
    ),
]
