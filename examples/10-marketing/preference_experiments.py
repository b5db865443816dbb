"""SYNTHETIC pairs: a chat model learns to prefer the message that suits a segment, by DPO."""

from __future__ import annotations

import math

from experiment import Experiment, Rows


def neither(train: Rows, held_out: Rows) -> float:
    """DPO's loss of having no preference, in nats a pair; the base against itself has it, too."""
    return math.log(2)


EXPERIMENTS = [
    Experiment(
        name="preference",
        recipe="preference.yaml",
        metric="loss",
        direction="min",
        trivial=("preferring neither", neither),
        before="zero-shot",
        scratch=None,
        why_no_scratch="DPO says how far to move from a model that writes, and one with random weights does not write",
        synthetic="every text, from a few templates, and which is preferred",
        miniature={
            "data.max_train_rows": 4,
            "data.max_eval_rows": 2,
            "train.epochs": 1,
            "train.rehearse": False,
            "generation.max_new_tokens": 4,
        },
    ),
]
