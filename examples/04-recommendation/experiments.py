"""Next films of MovieLens-100K's later users, against popularity and against the same model from scratch."""

import math
from collections import Counter

from experiment import Experiment, Rows


def popularity(train: Rows, held_out: Rows) -> float:
    """NDCG@10 of the films that most of the training rows have, without those a user has had already."""
    ranked = [film for film, _ in Counter(film for row in train for film in row["items"]).most_common()]
    gains = []
    for row in held_out:
        best = [film for film in ranked if film not in set(row["items"])][:10]
        gains.append(1 / math.log2(best.index(row["next"]) + 2) if row["next"] in best else 0.0)
    return sum(gains) / len(gains)


EXPERIMENTS = [
    Experiment(
        name="next-film",
        recipe="next_film.yaml",
        metric="ndcg@10",
        direction="max",
        trivial=("popularity", popularity),
        before="zero-shot",
        scratch={"train.learning_rate": 3e-3, "train.head_learning_rate": 3e-3},
        pretrained="the 63,018 ratings of the 565 earlier users, from scratch, by this project",
        miniature={"data.max_train_rows": 16, "data.max_eval_rows": 16, "train.epochs": 1, "train.sequence_length": 32},
    )
]
