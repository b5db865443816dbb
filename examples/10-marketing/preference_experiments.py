"""SYNTHETIC pairs: a chat model learns to prefer the message that suits a segment, by DPO."""

from __future__ import annotations

from experiment import Experiment, Rows


def by_length(train: Rows, held_out: Rows) -> float:
    """Share of held-out pairs whose chosen text is the shorter one (or the longer: as is more often so in training)."""

    def shorter(rows: Rows) -> float:
        return sum(len(row["chosen"]) < len(row["rejected"]) for row in rows) / len(rows)

    return shorter(held_out) if shorter(train) > 0.5 else 1 - shorter(held_out)


EXPERIMENTS = [
    Experiment(
        name="preference",
        recipe="preference.yaml",
        metric="likelihood_accuracy",
        direction="max",
        trivial=("by the texts' length", by_length),
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
