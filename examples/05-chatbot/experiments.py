"""A chat model learns to answer as a support desk does."""

from __future__ import annotations

from functools import partial

from experiment import Experiment
from unigram import NAME, chat_loss

SMOLLM2 = "example:smollm2-135m-instruct"
MINIATURE = {"data.max_train_rows": 8, "data.max_eval_rows": 4, "train.epochs": 1, "generation.max_new_tokens": 4}


EXPERIMENTS = [
    Experiment(
        name="support",
        recipe="support.yaml",
        metric="loss",
        direction="min",
        trivial=(NAME, partial(chat_loss, SMOLLM2)),
        before="zero-shot",
        scratch={"train.learning_rate": 1e-3},
        miniature=MINIATURE,
    ),
]
