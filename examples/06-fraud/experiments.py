"""Anomalies of the Shuttle's measurements, against their prevalence and against the same model from scratch."""

from experiment import Experiment, Rows


def prevalence(train: Rows, held_out: Rows) -> float:
    """The average precision of scores that know nothing: the share of anomalies."""
    return sum(row["label"] == "anomaly" for row in held_out) / len(held_out)


EXPERIMENTS = [
    Experiment(
        name="anomalies",
        recipe="anomalies.yaml",
        metric="auprc",
        direction="max",
        trivial=("prevalence", prevalence),
        scratch={"train.learning_rate": 1e-3},
        pretrained="20,000 other rows, without labels: how soon random cuts set each apart",
        miniature={"data.max_train_rows": 32, "data.max_eval_rows": 32, "train.epochs": 1},
    )
]
