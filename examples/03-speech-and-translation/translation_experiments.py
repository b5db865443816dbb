"""English to Spanish on Psalms and Proverbs, by a model that was pretrained on other books."""

from __future__ import annotations

from functools import partial

from experiment import Experiment
from unigram import NAME, target_loss

TRANSLATOR = "example:translation-en-es-tiny"
EXPERIMENTS = [
    Experiment(
        name="translation",
        recipe="translation.yaml",
        metric="loss",
        direction="min",
        trivial=(NAME, partial(target_loss, TRANSLATOR)),
        before="zero-shot",
        scratch={"train.learning_rate": 3e-3},
        pretrained="other books of the Bible, all prose, by this example",
        miniature={
            "data.max_train_rows": 16,
            "data.max_eval_rows": 4,
            "train.epochs": 1,
            "generation.max_new_tokens": 4,
        },
    ),
]
