"""What a loop judged, and nothing else of what it passed through, is what it leaves in the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pefttool.api.errors import ModelError
from pefttool.api.values import Row, Setting
from pefttool.export import delivered_metrics
from pefttool.inference import agreement, witness
from pefttool.inference.witness import Witness
from pefttool.setup import attach, precision
from pefttool.setup.attach import Adapted


def normed() -> Adapted:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    trainable = tuple(n for n, p in model.named_parameters() if p.requires_grad)
    buffers = {n: b.clone() for n, b in attach.small_buffers(model).items()}
    base = tuple(n for n, _ in model.named_buffers())
    return Adapted(model, trainable, (), True, (model[0].eval(),), base, buffers)


def step(adapted: Adapted) -> None:
    adapted.model.train()
    for module in adapted.eval_modules:
        module.eval()
    adapted.model(torch.randn(8, 2)).pow(2).sum().backward()
    with torch.no_grad():
        for parameter in adapted.parameters().values():
            parameter.sub_(0.1)


def test_a_state_is_put_back_with_its_statistics() -> None:
    adapted = normed()
    assert adapted.changed_buffers() == {}
    first = adapted.state()
    step(adapted)
    best, answers = adapted.state(), adapted.model.eval()(torch.ones(3, 2))
    assert {name for name in best if name.startswith("2.")} >= {"2.running_mean", "2.running_var"}
    assert not {name for name in best if name.startswith("0.")}, "what stands still does not change"
    step(adapted)
    adapted.put_back(best)
    assert adapted.model.eval()(torch.ones(3, 2)).equal(answers)
    adapted.put_back(first)  # taken when no buffer had changed
    assert adapted.changed_buffers() == {} and set(best) > set(first)


def test_what_training_changed_of_the_base_is_delivered() -> None:
    adapted = normed()
    step(adapted)
    assert set(adapted.delivered_buffers()) == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert replace(adapted, base=()).delivered_buffers() == {}, "an adapter's own are its own to save"


def test_the_base_is_shown_without_the_statistics_of_training() -> None:
    adapted = replace(normed(), trainable=(), head=("1.weight", "1.bias", "2.weight", "2.bias"))
    before, head = adapted.model.eval()(torch.ones(3, 2)), attach.head_values(adapted)
    step(adapted)
    after, adapter = adapted.model.eval()(torch.ones(3, 2)), SimpleNamespace()
    with attach.without(adapted, adapter, head):  # type: ignore[arg-type]
        assert adapted.model(torch.ones(3, 2)).equal(before)
    assert adapted.model(torch.ones(3, 2)).equal(after) and not after.equal(before)


def test_a_head_computes_in_float32_and_so_does_its_copy() -> None:
    head = nn.Linear(64, 3)
    precision.compute_in_float32(head)
    copied = copy.deepcopy(head)
    with torch.no_grad():
        copied.weight.zero_()
    given = torch.randn(5, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, other = head(given), copied(given)
    assert found.dtype == torch.float32
    assert found.equal(nn.functional.linear(given.float(), head.weight, head.bias))
    assert other.equal(head.bias.expand(5, 3))


class Words:
    """A task of rows as long as they say."""

    def check_row(self, values: Any, options: Any) -> str | None:
        return None if "label" in values else "no label"

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        return {"length": row.values["n"], "weight": row.values.get("weight", 1)}


def test_rows_to_predict_are_batched_as_they_are_judged() -> None:
    loaded: Any = SimpleNamespace(task=Words(), setting=Setting(None), processor=None, batch_size=2)
    rows = [Row({"n": n, "label": "a"}) for n in (1, 5, 3)] + [Row({"n": 9, "label": "a", "weight": 0})]
    assert delivered_metrics.order_of(loaded, rows) == [[1, 2], [0], [3]]
    assert delivered_metrics.order_of(loaded, rows, 3) == [[1, 2, 0], [3]]
    unlabelled = [*rows, Row({"n": 2})]
    assert delivered_metrics.order_of(loaded, unlabelled) == [[0, 1], [2, 3], [4]]


def test_answers_come_in_the_rows_order_as_soon_as_they_can() -> None:
    asked: list[list[int]] = []

    def predict(rows: Any) -> list[dict[str, Any]]:
        asked.append([row.values["n"] for row in rows])
        return [{"answer": row.values["n"]} for row in rows]

    loaded: Any = SimpleNamespace(predict=predict)
    answers = delivered_metrics.answers(loaded, [Row({"n": n}) for n in range(5)], [[0, 3], [4], [1, 2]])
    assert next(answers) == {"answer": 0} and len(asked) == 1
    assert [answer["answer"] for answer in answers] == [1, 2, 3, 4]


def heard(**answers: float) -> Witness:
    given = [{name: torch.full((1, 3), value) for name, value in answers.items()}]
    return Witness([], given, {}, {}, "bfloat16")


def test_a_model_that_answers_otherwise_is_not_the_trained_one(tmp_path: Any) -> None:
    trained, base = heard(logits=1.0), heard(logits=0.9).answers
    assert trained.agrees(heard(logits=1.0).answers, base, tmp_path).typical == 0
    assert trained.agrees(heard(logits=1.001).answers, base, tmp_path).typical > 0, "rounding"
    with pytest.raises(ModelError, match="does not answer as the trained model did"):
        trained.agrees(heard(logits=1.005).answers, base, tmp_path)  # a twentieth of what the adapter does
    with pytest.raises(ModelError, match="one answers with logits"):
        trained.agrees(heard(scores=1.0).answers, base, tmp_path)


def test_a_trained_value_that_is_another_once_loaded_is_found(tmp_path: Any) -> None:
    from pefttool.files import fingerprint

    model = nn.Linear(2, 2)
    made = dict(model.named_parameters())
    sums = dict(zip(made, fingerprint.checksums(list(made.values())), strict=True))
    trained = replace(heard(logits=1.0), values=sums, dtypes={name: torch.float32 for name in made})
    trained.require_values(model, tmp_path)
    trained.require_values(nn.Sequential(nn.Linear(2, 2)), tmp_path)  # it calls them otherwise: its answers are asked
    with torch.no_grad():
        model.bias.add_(1e-6)
    with pytest.raises(ModelError, match="1 of 2 trained tensors have other values than were trained, such as bias"):
        trained.require_values(model, tmp_path)


def test_the_tolerances_are_of_rounding() -> None:
    assert all(witness.ROUNDING[dtype] < agreement.TOLERANCE[dtype] for dtype in witness.ROUNDING)
