"""English to Spanish on Psalms and Proverbs, by a model that was pretrained on other books."""

from __future__ import annotations

from experiment import Experiment, Rows


def copied(train: Rows, held_out: Rows) -> float:
    """chrF of the English text as it is: names and punctuation are the same in both languages."""
    from pefttool_text.text_scores import scores

    pairs = [row["translation"] for row in held_out]
    return scores([pair["en"] for pair in pairs], [pair["es"] for pair in pairs], ())["chrf"]


EXPERIMENTS = [
    Experiment(
        name="translation",
        recipe="translation.yaml",
        metric="chrf",
        direction="max",
        trivial=("the source, copied", copied),
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
