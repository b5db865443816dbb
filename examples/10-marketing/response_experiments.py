"""Whom an offer moves (synthetic customers), against sending it by lot and against the same model from scratch."""

from experiment import Experiment, Rows


def by_lot(train: Rows, held_out: Rows) -> float:
    """The area above a random order of customers, for a random order."""
    return 0.0


EXPERIMENTS = [
    Experiment(
        name="response",
        recipe="response.yaml",
        metric="qini",
        direction="max",
        trivial=("offers by lot", by_lot),
        scratch={"train.learning_rate": 1e-3},
        synthetic="all customers are made up, and so is the earlier campaign",
        pretrained="20,000 synthetic customers of an earlier campaign with a weaker offer, by guessing hidden cells",
        miniature={"data.max_train_rows": 32, "data.max_eval_rows": 32, "train.epochs": 1},
    )
]
