"""Models that know a table: what is saved, that a task takes its columns from it, and that it knows something."""

from __future__ import annotations

import random

import pytest
import torch

from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.data import packed_rows as packed
from pefttool.inference.predictor import Predictor
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.bench import CPU
from pefttool_series.tabular import TabularClassification
from pefttool_series.tabular_columns import of_model

TASK = TabularClassification()


def table(count: int) -> list[dict]:
    """`b` is `a`, and `c` a category that `a` decides."""
    draws = random.Random(0)
    return [{"a": a, "b": a, "c": "high" if a > 5 else "low"} for a in (draws.uniform(0, 10) for _ in range(count))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    TASK.pretrain(table(300), made, width=32, layers=1, bins=4, steps=250, batch_size=32)
    return made


def loaded(folder, rows):
    options = TASK.Options()
    setting = Setting(options, labels=TASK.labels(rows, options), fitted=TASK.fit(rows, options))
    read = load_model(Loading(folder, TASK, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor, missing = read.model, read.processor, read.missing
    assert missing == ()
    return model, processor, setting


ROWS = [Row({"a": 1, "b": 20, "label": "x"}), Row({"a": 2, "b": 1, "label": "y"})]


def test_columns_and_their_vectors_are_the_model_s(folder):
    model, processor, setting = loaded(folder, ROWS)
    assert [column.name for column in processor.columns] == ["a", "b", "c"]
    assert processor.columns == of_model(model.config)
    weights = model.backbone.get_input_embeddings().weight
    values = model.columns.values
    torch.testing.assert_close(values, weights[: len(values)])
    torch.testing.assert_close(model.columns.columns, weights[len(values) :])
    assert TASK.encode(ROWS[0], processor, setting)["length"] == 3  # `c` is missing
    assert TASK.recognise_model(model.config) is not None
    assert packed.pack([TASK.encode(row, processor, setting) for row in ROWS]) is not None


def test_it_has_learnt_how_cells_hang_together(folder):
    """Of a hidden cell the model's state tells what the others say: rows of one `c` are alike, of another are not."""
    model, processor, setting = loaded(folder, ROWS)
    rows = [Row({"a": a, "b": a, "c": None, "label": "x"}) for a in (1, 2, 3, 7, 8, 9)]
    batch = TASK.collate([TASK.encode(row, processor, setting) for row in rows], processor, setting)
    with torch.no_grad():
        states = model.eval().states(batch["index"], batch["fraction"])[:, 2]
    distances = torch.cdist(states, states)
    within = (distances[:3, :3].max(), distances[3:, 3:].max())
    assert float(max(within)) < float(distances[:3, 3:].mean())


def test_the_same_rows_give_the_same_model(folder, tmp_path):
    TASK.pretrain(table(300), tmp_path, width=32, layers=1, bins=4, steps=250, batch_size=32)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_rows_without_some_columns_can_be_predicted(folder):
    model, processor, setting = loaded(folder, ROWS)
    answers = Predictor(model, TASK, processor, setting, CPU).predict(
        [Row({"a": 1, "b": 2}), Row({"c": "low", "b": 3})]
    )
    assert [set(answer["scores"]) for answer in answers] == [{"x", "y"}] * 2
