"""SYNTHETIC texts: a chat model learns a house style of messages for a product and a segment."""

from __future__ import annotations

from functools import partial

from experiment import Experiment
from unigram import NAME, chat_loss

SMOLLM2 = "example:smollm2-135m-instruct"
EXPERIMENTS = [
    Experiment(
        name="messages",
        recipe="messages.yaml",
        metric="loss",
        direction="min",
        trivial=(NAME, partial(chat_loss, SMOLLM2)),
        before="zero-shot",
        scratch=None,
        why_no_scratch="the same model with random weights is measured in 05-chatbot",
        synthetic="every text, from a few templates",
        miniature={
            "data.max_train_rows": 8,
            "data.max_eval_rows": 4,
            "train.epochs": 1,
            "generation.max_new_tokens": 4,
        },
    ),
]
