"""A row of a table as a sequence of vectors, one a column, through a pretrained transformer: one class."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pefttool import ModelError


@dataclass
class Classified:
    logits: Tensor


class ColumnTokens(nn.Module):
    """Places of values, `[B, F]`, to vectors `[B, F, D]`: the trained vectors of bins and categories, and of columns.

    `sizes` are the vectors of each column, `binned` says which columns add up the vectors before the one they are in.
    A model of this very table (see `tabular_columns.of_model`) has them as its token embeddings, values first.
    """

    owner: Tensor
    first: Tensor
    adds_up: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        binned: Sequence[bool],
        width: int,
        std: float,
        device: Any,
        pretrained: Tensor | None = None,
    ) -> None:
        super().__init__()
        counts = torch.tensor(sizes)
        owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
        first = torch.cumsum(counts, 0) - counts
        last = first + counts - 1
        adds_up = torch.tensor(binned)[owner] & (torch.arange(len(owner)) != last[owner])
        self.register_buffer("owner", owner.to(device), persistent=False)
        self.register_buffer("first", first.to(device), persistent=False)
        self.register_buffer("adds_up", adds_up.to(device), persistent=False)
        self.values = nn.Parameter(torch.empty(len(owner), width, device=device))
        self.columns = nn.Parameter(torch.empty(len(sizes), width, device=device))
        nn.init.normal_(self.values, 0, std)
        nn.init.normal_(self.columns, 0, std)
        if self.values.device.type == "meta":
            return
        with torch.no_grad():
            if pretrained is not None:
                self.values.copy_(pretrained[: len(owner)])
                self.columns.copy_(pretrained[len(owner) :])
            else:
                self.values[last] = 0  # what is missing, or unknown, says nothing yet

    def forward(self, index: Tensor, fraction: Tensor) -> Tensor:
        before = torch.cumsum(self.values, 0) - self.values
        before = (before - before[self.first][self.owner]) * self.adds_up.unsqueeze(-1)
        own = self.values[index] * fraction.unsqueeze(-1).to(self.values.dtype)
        return before[index] + own + self.columns[self.owner[index]]


class TabularModel(nn.Module):
    """`[B, F]` places of values to `[B, C]` logits: column vectors, the backbone's blocks, their mean, one layer."""

    base_model_prefix = "backbone"

    def __init__(
        self, backbone: Any, sizes: Sequence[int], binned: Sequence[bool], classes: int, of_table: bool = False
    ) -> None:
        super().__init__()
        accepted = inspect.signature(backbone.forward).parameters
        if "inputs_embeds" not in accepted or not hasattr(backbone, "get_input_embeddings"):
            raise ModelError(
                f"tabular-classification: {type(backbone).__name__} takes no inputs_embeds, so columns cannot be its"
                " tokens: use a text encoder such as example:all-minilm-l6-v2"
            )
        self.backbone = backbone
        self.config = backbone.config
        self.arguments = {"use_cache": False} if "use_cache" in accepted else {}
        table = backbone.get_input_embeddings().weight
        device = table.device
        std = float(getattr(self.config, "initializer_range", None) or 0.02)
        width = int(self.config.hidden_size)
        self.columns = ColumnTokens(sizes, binned, width, std, device, table.detach() if of_table else None)
        self.classifier = nn.Linear(width, classes, device=device)

    def states(self, index: Tensor, fraction: Tensor) -> Tensor:
        """`[B, F]` places of values to `[B, F, D]`: what the backbone makes of each column, given the others."""
        dtype = self.backbone.get_input_embeddings().weight.dtype
        tokens = self.columns(index, fraction).to(dtype)
        mask = torch.ones_like(index)
        states: Tensor = self.backbone(inputs_embeds=tokens, attention_mask=mask, **self.arguments).last_hidden_state
        return states

    def forward(self, index: Tensor, fraction: Tensor) -> Classified:
        return Classified(self.classifier(self.states(index, fraction).float().mean(1)))
