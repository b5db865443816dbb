"""How unusual rows are, tree by tree; and a model that has learnt to tell."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pefttool.api.values import Row
from pefttool_series import isolation
from pefttool_series import tabular_columns as columns
from pefttool_series.tabular_model import TabularModel
from pefttool_series.tabular_pretraining import pretrain


def table(count: int, seed: int) -> list[dict]:
    """Two numbers about 0 and a category; every tenth row has one of the numbers elsewhere."""
    draws = random.Random(seed)
    rows = [{"a": draws.gauss(0, 1), "b": draws.gauss(0, 1), "c": draws.choice("xy")} for _ in range(count)]
    for row in rows[::10]:
        row[draws.choice("ab")] = draws.choice((-1, 1)) * draws.uniform(6, 20)
    return rows


def fitted(rows: list[dict]) -> list[columns.Column]:
    return columns.fit([Row(row, "rows", i) for i, row in enumerate(rows, 1)], list, 8)


@pytest.mark.parametrize(
    "odd", [{"a": 50, "b": 0.0, "c": "x"}, {"a": "", "b": 0.0, "c": "x"}, {"a": 0.0, "b": 0.0, "c": "rare"}]
)
def test_a_number_far_out_a_missing_one_and_a_rare_category_are_set_apart_soon(odd):
    rows = [row for i, row in enumerate(table(400, seed=0)) if i % 10]
    rows.append(odd)
    found = isolation.depths(fitted(rows), rows, seed=0)
    assert found.shape == (len(rows), isolation.TREES)
    assert found.mean(1).argmin() == len(rows) - 1


def test_depths_are_those_of_scikit_learn_s_own_scores():
    from sklearn.ensemble import IsolationForest

    rows = [{name: row[name] for name in "ab"} for row in table(600, seed=0)]
    values = np.array([[row["a"], row["b"]] for row in rows])
    values = (values - values.min(0)) / (values.max(0) - values.min(0))
    forest = IsolationForest(n_estimators=isolation.TREES, random_state=0).fit(values.astype(np.float32))
    mean = isolation.depths(fitted(rows), rows, seed=0).mean(1)
    assert np.corrcoef(mean, np.log2(-forest.score_samples(values.astype(np.float32))))[0, 1] < -0.9999


def test_outermost_bins_are_halved_towards_what_is_rare():
    rows = [Row({"a": i}, "rows", i) for i in range(1025)]
    (column,) = columns.fit(rows, list, 4, tails=2)
    assert column.edges == (0, 64, 128, 256, 512, 768, 896, 960, 1024)


def test_a_model_has_learnt_how_unusual_rows_are_that_it_has_not_seen(tmp_path):
    from transformers import BertModel

    pretrain(table(500, 0), tmp_path, learns="isolation", width=32, layers=1, bins=8, steps=300, batch_size=32)
    backbone = BertModel.from_pretrained(tmp_path)
    found = columns.of_model(backbone.config)
    model = TabularModel(backbone, [c.size for c in found], [c.bins > 0 for c in found], 2, of_table=True).eval()

    def states(rows: list[dict]) -> torch.Tensor:
        placed = [columns.place(found, row) for row in rows]
        with torch.no_grad():
            return model.states(torch.tensor([i for i, _ in placed]), torch.tensor([f for _, f in placed])).mean(1)

    known, fresh = table(40, 1), table(200, 2)
    odd = torch.tensor([float(i % 10 == 0) for i in range(40)])
    seen = states(known)
    centre = seen.mean(0)
    weights = torch.linalg.lstsq(
        torch.cat([seen - centre, torch.eye(seen.shape[1])]), torch.cat([odd, torch.zeros(seen.shape[1])])
    ).solution
    scores = (states(fresh) - centre) @ weights
    odd_ones = scores[::10]
    usual = torch.cat([scores[i::10] for i in range(1, 10)])
    assert float((odd_ones[:, None] > usual).float().mean()) > 0.97
