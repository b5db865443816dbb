"""Which row of a pretrained head a class of the data has, and what becomes of the head's other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from pefttool.models import head_rows

NLI = ("contradiction", "neutral", "entailment")


@pytest.mark.parametrize(
    ("own", "wanted", "rows"),
    [
        (NLI, ("contradiction", "entailment", "neutral"), [0, 2, 1]),
        (NLI, ("Entailment", "NEUTRAL"), [2, 1]),
        (NLI, ("entailment", "other"), [2, None]),
        (NLI, ("x", "y", "z"), [None, None, None]),
        (NLI, ("0", "2"), [0, 2]),
        (NLI, ("1", "2", "3"), [None, None, None]),
        (("1", "2", "0"), ("0", "1", "2"), [2, 0, 1]),
        (("Pos", "pos"), ("pos", "POS"), [1, None]),  # which of the two would the other one be?
        (("pos", "neg"), ("Pos", "pos"), [None, 0]),
        (("a", "N/A", "N/A"), ("N/A", "a"), [None, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "2"), [0, 2]),
        (("LABEL_0", "LABEL_1"), ("neg", "pos"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
    ],
)
def test_a_class_has_the_row_of_its_name(own: Sequence[str], wanted: Sequence[str], rows: Any) -> None:
    assert head_rows.match(own, wanted) == rows


class Config:
    def __init__(self, names: Sequence[str]) -> None:
        self.id2label, self.initializer_range = dict(enumerate(names)), 0.0


def head(classes: int, more: int = 0) -> nn.Module:
    """As wide as it has classes: what has a row for each is told by one class more, not by its size."""
    made = nn.ModuleDict({"dense": nn.Linear(3, 3), "out": nn.Linear(3, classes + more)})
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + 100 * number)
    return made


def settle(model: nn.Module, names: Sequence[str], misfits: Sequence[str], pretrained: nn.Module, more: int) -> Any:
    stored = dict(pretrained.named_parameters())
    described = {"id2label": dict(enumerate(names)), "num_labels": len(names)}
    return head_rows.settle(
        model,
        Config(NLI),
        described,
        head_rows.Stored(misfits, misfits, stored.get),
        lambda d: head(d["num_labels"], more),
    )


def test_of_as_many_classes_the_rows_change_places_and_nothing_else() -> None:
    model, before = head(3, more=1), head(3, more=1)
    told = settle(model, ("entailment", "new", "neutral"), (), before, more=1)
    assert "taken by name, and new starts new" in told
    assert torch.equal(model["dense"].weight, before["dense"].weight)
    for part, new in ((model["out"].weight, torch.zeros(3)), (model["out"].bias, torch.tensor(0.0))):
        old = dict(before.named_parameters())["out.weight" if part.dim() == 2 else "out.bias"]
        assert torch.equal(part, torch.stack([old[2], new, old[1], old[3]]))  # the last one is no class


def test_of_fewer_classes_the_rows_come_from_the_file() -> None:
    model, stored = head(2), head(3)
    told = settle(model, ("neutral", "contradiction"), ("out.weight", "out.bias"), stored, more=0)
    assert told.endswith("those of the training rows' classes are taken by name")
    assert torch.equal(model["out"].weight, stored["out"].weight[[1, 0]])
    assert torch.equal(model["out"].bias, stored["out"].bias[[1, 0]])


def test_a_head_that_the_folder_lacks_is_no_head_of_its_names() -> None:
    model, before = head(3), head(3)
    described = {"id2label": dict(enumerate(("neutral", "entailment", "contradiction"))), "num_labels": 3}
    missing = ("out.weight", "out.bias")
    told = head_rows.settle(
        model, Config(NLI), described, head_rows.Stored((), missing, lambda name: None), lambda d: head(d["num_labels"])
    )
    assert told is None and torch.equal(model["out"].weight, before["out"].weight)
