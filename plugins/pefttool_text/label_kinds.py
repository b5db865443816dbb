"""What a label may be: one class, any number of classes, or a number. What each means for the head, the loss, the
predictions and the metrics; one object a kind.

B rows in a batch, C classes. `fitted` is what `fit` made of the training rows' labels: empty in runs of before there
was any.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pefttool import DataError, Direction
from pefttool.toolkit.class_names import in_order, name_of
from pefttool.toolkit.columns import describe, most

if TYPE_CHECKING:
    from torch import Tensor

Predictions = Sequence[Mapping[str, Any]]
Fitted = Mapping[str, float]
NOTHING: Fitted = {}
#: Numbers are smaller, so that float32 holds them (its own limit is 3.4e38).
LARGEST = 3e38
#: Of a class that is written as 1.0: larger floats are no counting numbers.
LARGEST_NUMBER = 2.0**53


def is_class(value: Any) -> bool:
    """Whether this is the name or the number of a class."""
    return isinstance(value, str | int | bool) and value != ""


class LabelKind(ABC):
    """`problem_type` is transformers' name for it, written into the model's config."""

    name: ClassVar[str]
    problem_type: ClassVar[str]
    primary: ClassVar[tuple[str, Direction]]
    expected: ClassVar[str]

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether a row's value can be read as such a label."""

    def complaint(self, value: Any) -> str | None:
        """What a value is told that only just does not fit; None: that it is of another kind."""
        return None

    @abstractmethod
    def read(self, value: Any) -> Any:
        """The label in the form that the other methods take."""

    def stratum(self, label: Any) -> str | None:
        """What a split should keep in proportion."""
        return None

    def classes(self, label: Any) -> Sequence[str]:
        """The classes of a row."""
        return []

    def names(self, labels: Sequence[Any]) -> tuple[str, ...]:
        """The class names of all these labels, in the order of the model's outputs."""
        return ()

    def fit(self, labels: Sequence[Any]) -> Fitted:
        """What the labels of the training rows decide besides names, as plain JSON values."""
        return NOTHING

    @abstractmethod
    def target(self, label: Any, names: Sequence[str], fitted: Fitted = NOTHING) -> Any:
        """The label as plain numbers; its classes are among the names."""

    @abstractmethod
    def filler(self, names: Sequence[str]) -> Any:
        """A target of the right form, for a simulation."""

    @abstractmethod
    def targets(self, targets: Sequence[Any]) -> Tensor:
        """The targets of a batch as a tensor."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of float32 logits `[B, C]`: every row weighs 1."""

    @abstractmethod
    def decode(self, logits: Tensor, names: Sequence[str], fitted: Fitted = NOTHING) -> list[dict[str, Any]]:
        """One prediction for each row of float32 logits `[B, C]`."""

    @abstractmethod
    def metrics(self, labels: Sequence[Any], predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
        """Metrics of these predictions against the labels as `read` gave them."""


class SingleLabel(LabelKind):
    """One of several classes: softmax and cross-entropy."""

    name = "single-label"
    problem_type = "single_label_classification"
    primary = ("accuracy", "max")
    expected = "a class name or number"

    def fits(self, value: Any) -> bool:
        # A table with a value missing has whole numbers as 1.0: whoever says that it is a class, means 1.
        return is_class(value) or (isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_NUMBER)

    def read(self, value: Any) -> str:
        return name_of(int(value) if isinstance(value, float) else value)

    def stratum(self, label: str) -> str:
        return label

    def classes(self, label: str) -> Sequence[str]:
        return [label]

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return in_order(labels)

    def target(self, label: str, names: Sequence[str], fitted: Fitted = NOTHING) -> int:
        return names.index(label)

    def filler(self, names: Sequence[str]) -> int:
        return 0

    def targets(self, targets: Sequence[int]) -> Tensor:
        """`[B]` int64."""
        import torch

        return torch.tensor(targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, reduction="sum")

    def decode(self, logits: Tensor, names: Sequence[str], fitted: Fitted = NOTHING) -> list[dict[str, Any]]:
        probabilities = logits.softmax(-1)
        best = probabilities.max(-1)
        return [
            {"label": names[index], "score": score, "scores": dict(zip(names, row, strict=True))}
            for index, score, row in zip(
                best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True
            )
        ]

    def metrics(self, labels: Sequence[str], predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
        """A class that is neither there nor predicted is not in the mean, as is scikit-learn's default."""
        from sklearn.metrics import accuracy_score, f1_score

        given = [p["label"] for p in predictions]
        f1 = f1_score(labels, given, average="macro", zero_division=0.0)
        return {"accuracy": float(accuracy_score(labels, given)), "f1_macro": float(f1)}


class MultiLabel(LabelKind):
    """Any number of classes, none among them: a sigmoid and binary cross-entropy for each, the mean over classes."""

    name = "multi-label"
    problem_type = "multi_label_classification"
    primary = ("f1_micro", "max")
    expected = "a list of class names"
    #: A class is predicted from this probability on.
    threshold: ClassVar[float] = 0.5

    def fits(self, value: Any) -> bool:
        return isinstance(value, list) and all(map(is_class, value))

    def read(self, value: Any) -> tuple[str, ...]:
        return tuple(sorted(set(map(name_of, value))))

    def stratum(self, label: Sequence[str]) -> str:
        # One class of several: most combinations are of a row or two, and none of those would be held out, or half.
        return label[0] if label else ""

    def classes(self, label: Sequence[str]) -> Sequence[str]:
        return label

    def names(self, labels: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return in_order([name for label in labels for name in label])

    def target(self, label: Sequence[str], names: Sequence[str], fitted: Fitted = NOTHING) -> list[float]:
        return [float(name in label) for name in names]

    def filler(self, names: Sequence[str]) -> list[float]:
        return [0.0] * len(names)

    def targets(self, targets: Sequence[Sequence[float]]) -> Tensor:
        """`[B, C]` float32, 1 for each class of the row."""
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1).sum()

    def decode(self, logits: Tensor, names: Sequence[str], fitted: Fitted = NOTHING) -> list[dict[str, Any]]:
        return [
            {
                "labels": [name for name, score in zip(names, row, strict=True) if score >= self.threshold],
                "scores": dict(zip(names, row, strict=True)),
            }
            for row in logits.sigmoid().tolist()
        ]

    def metrics(
        self, labels: Sequence[Sequence[str]], predictions: Predictions, names: Sequence[str]
    ) -> dict[str, float]:
        """A class that is neither there nor predicted is not in the mean; F1 is NaN where there is none else."""
        from sklearn.metrics import accuracy_score, f1_score

        truth = [self.target(label, names) for label in labels]
        given = [self.target(p["labels"], names) for p in predictions]
        averages = {a: f1_score(truth, given, average=a, zero_division=math.nan) for a in ("micro", "macro")}
        return {
            **{f"f1_{average}": float(value) for average, value in averages.items()},
            "all_right": float(accuracy_score(truth, given)),  # the share of rows with every class right
        }


class MultiHot(MultiLabel):
    """Classes by their places in a list of 0 and 1 (one row of scikit-learn's label matrix); `places` are their names.

    Without names, before the rows have been seen, any such list will do.
    """

    expected = "a list of 0 and 1"

    def __init__(self, places: Sequence[str] = ()) -> None:
        self.places = tuple(places)

    def fits(self, value: Any) -> bool:
        hot = isinstance(value, list) and all(isinstance(v, int | float) and v in (0, 1) for v in value)
        return hot and len(value) == (len(self.places) or len(value))

    def complaint(self, value: Any) -> str | None:
        if not MultiHot().fits(value) or self.fits(value):
            return None
        named = f"{len(self.places)} ({', '.join(self.places[:10])})"
        return f"found {len(value)} places of 0 and 1, expected {named}: one for each class"

    def read(self, value: Any) -> tuple[str, ...]:
        return tuple(name for name, there in zip(self.places, value, strict=True) if there)

    def names(self, labels: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return self.places


class Regression(LabelKind):
    """A number: squared error, in units of the training rows' deviation, from their mean. Answers are in the data's own
    units; where the training rows were not asked (`fitted` is empty), so are the head's outputs."""

    name = "regression"
    problem_type = "regression"
    primary = ("pearson", "max")
    expected = "a number"

    def fits(self, value: Any) -> bool:
        try:
            is_number = not isinstance(value, bool) and isinstance(value, str | int | float) and "_" not in str(value)
            return is_number and abs(float(value)) < LARGEST
        except (ValueError, OverflowError):
            return False

    def complaint(self, value: Any) -> str | None:
        try:
            too_large = isinstance(value, str | int | float) and abs(float(value)) >= LARGEST
        except ValueError:
            return None
        except OverflowError:
            too_large = True
        return f"found {describe(value)}, expected a number that float32 holds" if too_large else None

    def read(self, value: Any) -> float:
        return float(value)

    def fit(self, labels: Sequence[float]) -> Fitted:
        mean = math.fsum(labels) / len(labels)
        std = math.sqrt(math.fsum((label - mean) ** 2 for label in labels) / len(labels))
        return {"mean": mean, "std": std or 1.0}

    def target(self, label: float, names: Sequence[str], fitted: Fitted = NOTHING) -> float:
        return (label - fitted.get("mean", 0.0)) / fitted.get("std", 1.0)

    def filler(self, names: Sequence[str]) -> float:
        return 0.0

    def targets(self, targets: Sequence[float]) -> Tensor:
        """`[B]` float32."""
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.squeeze(-1) - targets).square().sum()

    def decode(self, logits: Tensor, names: Sequence[str], fitted: Fitted = NOTHING) -> list[dict[str, Any]]:
        mean, std = fitted.get("mean", 0.0), fitted.get("std", 1.0)
        return [{"value": value * std + mean} for value in logits.squeeze(-1).tolist()]

    def metrics(self, labels: Sequence[float], predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
        """`pearson` and `spearman` are NaN where they are not defined: one row, or all values alike."""
        from scipy.stats import pearsonr, spearmanr

        given = [p["value"] for p in predictions]
        defined = len(set(labels)) > 1 and len(set(given)) > 1
        squares = math.fsum((a - b) ** 2 for a, b in zip(labels, given, strict=True))
        return {
            "pearson": float(pearsonr(labels, given).statistic) if defined else math.nan,
            "spearman": float(spearmanr(labels, given).statistic) if defined else math.nan,
            "rmse": math.sqrt(squares / len(labels)),
        }


SINGLE, MULTI, REGRESSION = SingleLabel(), MultiLabel(), Regression()
KINDS: dict[str, LabelKind] = {kind.name: kind for kind in (SINGLE, MULTI, REGRESSION)}


def recognise(values: Sequence[Any]) -> tuple[LabelKind | None, str]:
    """(the kind that labels like these, or most of them, can only be, why), or (None, what speaks against each)."""
    values = _usual(values, lambda v: isinstance(v, list))
    if any(isinstance(v, float) for v in values):
        values = _usual(values, lambda v: isinstance(v, int | float) and not isinstance(v, bool))
    if all(isinstance(v, list) for v in values):
        return MULTI, "lists of 0 and 1, a place for each class" if places(values) else "lists of classes"
    if any(isinstance(v, list) for v in values):
        return None, "some are lists, and some are not"
    floats = [v for v in values if isinstance(v, float)]
    if floats and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        if all(v.is_integer() for v in floats):
            return None, f"{describe(floats[0])} may be a number or the number of a class"
        return REGRESSION, "numbers with fractions"
    if floats:
        return None, f"{describe(floats[0])} is a number, and others are not"
    texts = [v for v in values if isinstance(v, str)]
    if len(texts) == len(values) and all(map(REGRESSION.fits, texts)) and not all(map(_whole, texts)):
        return None, f"{describe(next(t for t in texts if not _whole(t)))} may be a number or the name of a class"
    return SINGLE, "names or numbers of classes"


def places(values: Sequence[Any]) -> tuple[str, ...]:
    """The classes of labels that are lists of 0 and 1, called by their places; () where the lists name classes.

    A list that names classes names none twice; lists of two are all names of both classes, or places.
    """
    lists = [v for v in values if isinstance(v, list)]
    if not lists or not all(map(MultiHot().fits, lists)):
        return ()
    lengths = Counter(map(len, lists))
    if not any(len(set(v)) < len(v) for v in lists) and set(lengths) != {2}:
        return ()
    return tuple(map(str, range(lengths.most_common(1)[0][0])))


def _usual(values: Sequence[Any], holds: Callable[[Any], bool]) -> Sequence[Any]:
    """The values of which it holds, or the others, whichever are a clear majority; all of them where neither are."""
    sides = [v for v in values if holds(v)], [v for v in values if not holds(v)]
    return next((side for side in sides if most(len(side), len(values))), values)


def _whole(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def require_classes(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, if there is something to tell apart. Raises DataError."""
    if len(names) < 2:
        shown = ", ".join(names) or "none"
        raise DataError(
            f"{task}: the training rows have {len(names)} class ({shown}), expected at least 2: add rows of another"
        )
    return tuple(names)
