"""Series of machines and plants: real currents, real movements, a real demand, and a SYNTHETIC wear."""

from __future__ import annotations

from collections import Counter

import numpy as np
from experiment import Experiment, Rows
from sklearn.metrics import roc_auc_score

from pefttool_series.metrics import array, errors


def majority(train: Rows, held_out: Rows) -> float:
    """Accuracy of always naming the class that is most frequent in training."""
    most = Counter(row["label"] for row in train).most_common(1)[0][0]
    return sum(row["label"] == most for row in held_out) / len(held_out)


def mean_day(train: Rows, held_out: Rows) -> float:
    """MASE of forecasting the mean of the training days' futures: better here than any naive forecast."""
    mean = np.mean([array(row["future"]) for row in train], axis=0)
    forecasts = [mean] * len(held_out)
    futures, pasts = ([array(row[column]) for row in held_out] for column in ("future", "series"))
    return errors(forecasts, futures, pasts, season=1)["mase"]


def best_sensor(train: Rows, held_out: Rows) -> float:
    """AUROC of the mean of a sensor's last eight values: of the sensor that separates the training rows best."""

    def level(row, sensor):
        return sum(row["series"][sensor][-8:]) / 8

    def auroc(rows, sensor):
        return roc_auc_score([row["label"] == "fails" for row in rows], [level(row, sensor) for row in rows])

    sensors = range(len(train[0]["series"]))
    best = max(sensors, key=lambda sensor: abs(auroc(train, sensor) - 0.5))
    found = auroc(held_out, best)
    return found if auroc(train, best) > 0.5 else 1 - found


FROM_SCRATCH = {"train.learning_rate": 1e-3, "train.head_learning_rate": 1e-3}
EXPERIMENTS = [
    Experiment(
        name="appliances",
        recipe="appliances.yaml",
        metric="accuracy",
        direction="max",
        trivial=("majority class", majority),
        scratch={"train.learning_rate": 3e-3, "train.head_learning_rate": 3e-3},
        pretrained="485 recordings of seven other kinds",
        miniature={"train.epochs": 2, "data.max_eval_rows": 16},
    ),
    Experiment(
        name="movements",
        recipe="movements.yaml",
        metric="accuracy",
        direction="max",
        trivial=("majority class", majority),
        scratch={"train.learning_rate": 6e-3, "train.head_learning_rate": 6e-3},
        pretrained="177 recordings of eight other movements",
        miniature={"train.epochs": 2, "data.max_eval_rows": 16},
    ),
    Experiment(
        name="power",
        recipe="power.yaml",
        metric="mase",
        direction="min",
        trivial=("mean of the training days", mean_day),
        scratch=FROM_SCRATCH,
        before="zero-shot",
        pretrained="547 days of winter",
        miniature={"train.epochs": 2, "data.max_eval_rows": 32},
    ),
    Experiment(
        name="degradation",
        recipe="degradation.yaml",
        metric="auroc",
        direction="max",
        trivial=("level of the best sensor", best_sensor),
        scratch=FROM_SCRATCH,
        before="zero-shot",
        synthetic="all of it: simulated machines that wear out",
        pretrained="simulated machines of another fleet",
        miniature={"train.epochs": 1, "data.max_eval_rows": 32},
    ),
]
