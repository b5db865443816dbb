"""Metrics of scores under class imbalance, by scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def classification(
    truth: Sequence[str], predictions: Sequence[Mapping[str, Any]], labels: Sequence[str], positive: str
) -> dict[str, float]:
    """Of two classes: about the `positive` one. Of more: means over the classes (each against the rest).

    auprc is average precision: a model that knows nothing has the share of the class. Of one class alone among `truth`
    there is no auroc; a class that `truth` lacks counts in no mean (f1_macro: that is not predicted either). Where the
    positive class is not there, auprc is NaN, and so is f1 unless it was predicted.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

    given = [p["label"] for p in predictions]
    found = {
        "accuracy": float(accuracy_score(truth, given)),
        "f1_macro": float(f1_score(truth, given, average="macro", zero_division=0.0)),
    }
    about = [positive] if len(labels) == 2 else [label for label in labels if label in truth]
    precisions, areas = [], []
    for label in about:
        is_it = [t == label for t in truth]
        scores = [p["scores"][label] for p in predictions]
        precisions.append(float(average_precision_score(is_it, scores)) if any(is_it) else math.nan)
        if any(is_it) and not all(is_it):
            areas.append(float(roc_auc_score(is_it, scores)))
    found["auprc"] = sum(precisions) / len(precisions)
    if areas:
        found["auroc"] = sum(areas) / len(areas)
    if len(labels) == 2:
        is_it, said = [t == positive for t in truth], [g == positive for g in given]
        found["f1"] = float(f1_score(is_it, said, zero_division=math.nan))
    return found
