"""A small transformer that knows a table before it is told a class: pretrained without labels.

For tables with many rows and few labels. It guesses hidden cells (what goes with what), or how soon random cuts set a
row apart from the others (what is unusual; see `isolation`). What is saved is a BERT whose tokens are cells: its config
(`table`) says where the bins of its columns end, and its token embeddings are the vectors of values and, behind them,
of columns, as `tabular-classification` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pefttool import Row
from pefttool.toolkit.quiet import quiet_loading
from pefttool_series import isolation
from pefttool_series import tabular_columns as columns
from pefttool_series.tabular_model import TabularModel

#: The share of the cells of a row that are hidden, and have to be guessed from the others.
HIDDEN = 0.3
WARM_UP = 0.1
#: What tells unusual rows lies at the ends of columns: there bins are halved this often, down to 1/1024 for 16 bins.
TAILS = 6
#: A layer that is trained along and left behind, and the loss of the rows of these numbers.
Objective = tuple[nn.Module, Callable[[Tensor], Tensor]]


def pretrain(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    learns: Literal["cells", "isolation"] = "cells",
    width: int = 64,
    layers: int = 3,
    bins: int = 16,
    steps: int = 2_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train on all columns of `rows` (no label among them, unless it is to be guessed, too) and save to `folder`.

    learns  "cells": hidden ones, from the others of their row; "isolation": how unusual the row is, for anomalies
    bins    at most, of a column of numbers; further ones at both ends where it learns isolation (see `TAILS`)
    """
    from transformers import BertConfig, BertModel

    tails = TAILS if learns == "isolation" else 0
    found = columns.fit([Row(row, "rows", i) for i, row in enumerate(rows, 1)], list, bins, tails)
    placed = [columns.place(found, row) for row in rows]
    index, fraction = torch.tensor([i for i, _ in placed]), torch.tensor([f for _, f in placed])
    sizes, binned = [column.size for column in found], [column.bins > 0 for column in found]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=sum(sizes) + len(sizes),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=max(64, len(sizes)),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
            table={"columns": [column.as_json() for column in found]},
        )
        model = TabularModel(BertModel(config, add_pooling_layer=False), sizes, binned, classes=2)
        if learns == "isolation":
            objective = _isolation(model, index, fraction, torch.tensor(isolation.depths(found, rows, seed)))
        else:
            objective = _hidden_cells(model, index, fraction)
        _train(model, objective, len(rows), steps, batch_size, learning_rate)
        saved = BertModel(config)  # with a pooler, which whoever loads a BERT looks for
    saved.load_state_dict(model.backbone.state_dict(), strict=False)
    with torch.no_grad():
        saved.get_input_embeddings().weight.copy_(torch.cat([model.columns.values, model.columns.columns]))
    with quiet_loading():
        saved.eval().save_pretrained(folder)


def _hidden_cells(model: TabularModel, index: Tensor, fraction: Tensor) -> Objective:
    """Of `[N, F]` places: hidden cells are given as missing, and which vector they had is to be told."""
    owner, first = model.columns.owner, model.columns.first
    missing = torch.cat([first[1:], first.new_tensor([len(owner)])]) - 1
    guess = nn.Linear(model.config.hidden_size, len(owner))

    def loss(chosen: Tensor) -> Tensor:
        hidden = torch.rand(len(chosen), index.shape[1]) < HIDDEN
        given = torch.where(hidden, missing.expand(len(chosen), -1), index[chosen])
        parts = torch.where(hidden, 1.0, fraction[chosen])
        wanted = index[chosen][hidden]
        scores = guess(model.states(given, parts)[hidden])
        scores = scores.masked_fill(owner != owner[wanted].unsqueeze(1), float("-inf"))
        return cross_entropy(scores, wanted)

    return guess, loss


def _isolation(model: TabularModel, index: Tensor, fraction: Tensor, depths: Tensor) -> Objective:
    """Of `[N, F]` places: their `[N, T]` depths in T trees, each in deviations from its tree's mean."""
    wanted = ((depths - depths.mean(0)) / depths.std(0).clamp_min(1e-6)).float()
    tell = nn.Linear(model.config.hidden_size, wanted.shape[1])

    def loss(chosen: Tensor) -> Tensor:
        return mse_loss(tell(model.states(index[chosen], fraction[chosen]).mean(1)), wanted[chosen])

    return tell, loss


def _train(
    model: TabularModel, objective: Objective, rows: int, steps: int, batch_size: int, learning_rate: float
) -> None:
    head, loss_of = objective
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=learning_rate)
    for step in range(1, steps + 1):
        rate = min(step / (WARM_UP * steps), (steps - step) / (steps * (1 - WARM_UP)))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        loss = loss_of(torch.randint(rows, (batch_size,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
