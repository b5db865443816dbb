"""Four kinds of things on drawn streets, found and told apart."""

from constant_boxes import constant_boxes
from experiment import Experiment

EXPERIMENTS = [
    Experiment(
        name="streets",
        recipe="detection.yaml",
        metric="map_50",
        direction="max",
        trivial=("the same boxes everywhere", constant_boxes),
        # Two epochs of the whole model take longer than twelve of the head on kept features.
        scratch={"train.learning_rate": 5e-4, "train.head_learning_rate": 5e-4, "train.epochs": 2},
        synthetic="the streets and everything on them are drawn",
        miniature={"data.max_train_rows": 8, "data.max_eval_rows": 8, "train.epochs": 1, "task.size": 56},
    ),
]
