"""A small text encoder learns a class, tags, and answers; against trivial answers and the same model from scratch."""

import re
from collections import Counter

from experiment import Experiment, Rows

from pefttool_text import squad_scores, tagging


def majority_class(train: Rows, held_out: Rows) -> float:
    """Accuracy of the one class that does best on the held-out rows."""
    ((_, count),) = Counter(row["label"] for row in held_out).most_common(1)
    return count / len(held_out)


def usual_tags(train: Rows, held_out: Rows) -> float:
    """Entity F1 of giving every word the tag that it had most often in training, and none to unknown words."""
    seen: dict[str, Counter[str]] = {}
    for row in train:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            seen.setdefault(word.lower(), Counter())[tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    given = [[usual.get(word.lower(), tagging.OUTSIDE) for word in row["tokens"]] for row in held_out]
    return tagging.scores([row["tags"] for row in held_out], given, "bio")["f1"]


def first_year(train: Rows, held_out: Rows) -> float:
    """F1 of answering with the first year of the passage."""
    found = [re.search(r"\d{4}", row["context"]) for row in held_out]
    scores = [
        squad_scores.f1(year.group() if year else "", row["answers"]["text"])
        for year, row in zip(found, held_out, strict=True)
    ]
    return sum(scores) / len(scores)


SMALL = {"data.max_train_rows": 32, "data.max_eval_rows": 32, "train.epochs": 1}
EXPERIMENTS = [
    Experiment(
        name="sentiment",
        recipe="sentiment.yaml",
        metric="accuracy",
        direction="max",
        trivial=("majority class", majority_class),
        miniature=SMALL,
    ),
    Experiment(
        name="entities",
        recipe="entities.yaml",
        metric="f1",
        direction="max",
        trivial=("each word's usual tag", usual_tags),
        miniature={**SMALL, "data.max_train_rows": 200},
    ),
    Experiment(
        name="answers",
        recipe="answers.yaml",
        metric="f1",
        direction="max",
        trivial=("the passage's first year", first_year),
        synthetic="the questions and passages, from templates; the facts are those of real films",
        miniature=SMALL,
    ),
]
