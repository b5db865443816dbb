"""Cell nuclei: boxes on the held-out part of a real fluorescence picture."""

from constant_boxes import constant_boxes
from experiment import Experiment

EXPERIMENTS = [
    Experiment(
        name="nuclei",
        recipe="images.yaml",
        metric="map_50",
        direction="max",
        trivial=("the same boxes everywhere", constant_boxes),
        # Six epochs of the whole model take longer than 24 of the head on kept features.
        scratch={"train.learning_rate": 5e-4, "train.head_learning_rate": 5e-4, "train.epochs": 6},
        miniature={"data.max_train_rows": 8, "data.max_eval_rows": 4, "train.epochs": 1, "task.size": 56},
    ),
]
