"""Seriously ill patients: who dies within 180 days, against the share of each disease and the same from scratch."""

from __future__ import annotations

from experiment import Experiment, Rows
from sklearn.metrics import roc_auc_score


def share_of_the_disease(train: Rows, held_out: Rows) -> float:
    """The area under the ROC curve of how many of the training rows with the same disease died (none known: half)."""

    def score(disease: object) -> float:
        died = [row["label"] == "died" for row in train if row["dzgroup"] == disease]
        return sum(died) / len(died) if died else 0.5

    return float(roc_auc_score([row["label"] == "died" for row in held_out], [score(r["dzgroup"]) for r in held_out]))


EXPERIMENTS = [
    Experiment(
        name="patients",
        recipe="patients.yaml",
        metric="auroc",
        direction="max",
        trivial=("the share of each disease that died", share_of_the_disease),
        scratch={"train.learning_rate": 3e-3},
        pretrained="6,400 other patients of the study and how their stay in hospital went, by guessing hidden cells",
        miniature={"data.max_train_rows": 32, "data.max_eval_rows": 32, "train.epochs": 1},
    )
]
