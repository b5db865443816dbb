"""Biopsies of breasts, malignant or benign, against their prevalence and against the same model from scratch."""

from experiment import Experiment, Rows


def prevalence(train: Rows, held_out: Rows) -> float:
    """The average precision of scores that know nothing: the share of malignant ones, the rarer class."""
    return sum(row["label"] == "malignant" for row in held_out) / len(held_out)


EXPERIMENTS = [
    Experiment(
        name="biopsies",
        recipe="tabular.yaml",
        metric="auprc",
        direction="max",
        trivial=("prevalence", prevalence),
        scratch={"train.learning_rate": 3e-4},
        scratch_as_good="the table is nearly linear: a few dozen labels are enough to learn it from nothing",
        miniature={"data.max_train_rows": 16, "data.max_eval_rows": 16, "train.epochs": 1},
    )
]
