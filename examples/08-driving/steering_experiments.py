"""How a vehicle moves on: its velocity so far, and in the next 3.2 seconds. SYNTHETIC."""

from __future__ import annotations

import numpy as np
from experiment import Experiment, Rows

from pefttool_series.metrics import array, errors


def constant_velocity(train: Rows, held_out: Rows) -> float:
    """MASE of going on with the last velocity."""
    futures, pasts = ([array(row[column]) for row in held_out] for column in ("future", "series"))
    forecasts = [np.repeat(past[:, -1:], future.shape[1], 1) for past, future in zip(pasts, futures, strict=True)]
    return errors(forecasts, futures, pasts, season=1)["mase"]


EXPERIMENTS = [
    Experiment(
        name="trajectory",
        recipe="steering.yaml",
        metric="mase",
        direction="min",
        trivial=("constant velocity", constant_velocity),
        scratch={"train.learning_rate": 1e-3, "train.head_learning_rate": 1e-3},
        before="zero-shot",
        synthetic="all of it: a kinematic model of vehicles that steer into turns",
        pretrained="synthetic driving on country roads",
        miniature={"train.epochs": 1, "data.max_eval_rows": 32},
    )
]
