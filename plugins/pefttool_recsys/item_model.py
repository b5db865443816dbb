"""A causal transformer over items: what a user may take next, scored by the items' own embeddings (SASRec)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pefttool import DataError, ModelError
from pefttool.toolkit import decoders

#: Index of what is in no catalogue, and of padding: its vector is zero, and it is never recommended.
UNKNOWN = 0


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Item names by index (from 1 on): `known` are tokens of the model's vocabulary, the rest are `new`.

    It stands where tasks have a tokenizer, and keeps the model's own, which goes with the adapter.
    """

    names: tuple[str, ...]
    known: tuple[int, ...]
    indices: Mapping[str, int]
    tokenizer: Any = None

    @classmethod
    def of(cls, config: Any, tokenizer: Any, items: Sequence[str]) -> Catalogue:
        """The items of the model's vocabulary, where that is one of items, and those of `items` that it lacks.

        Without `items` and tokenizer (planning): as many as the model has tokens. Raises DataError where the model
        knows items, and none of these.
        """
        vocabulary: dict[str, int] = {}
        if getattr(config, "vocabulary", None) == "items":
            if tokenizer is None:
                vocabulary = {str(i): i for i in range(1, config.vocab_size)}
            else:
                special = set(tokenizer.all_special_tokens)
                vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if t not in special}
        known = sorted(vocabulary.items(), key=lambda pair: pair[1])
        new = [item for item in items if item not in vocabulary]
        if not known and not new:
            new = [str(i) for i in range(getattr(config, "vocab_size", 0))]
        if known and items and len(new) == len(items):
            raise DataError(
                f"next-item: the model knows none of the {len(new)} items of the training rows, such as {new[0]!r}: its"
                f" own are called like {known[0][0]!r}: call yours so, or use a model without items of its own (a"
                " causal language model)"
            )
        names = (*(name for name, _ in known), *new)
        indices = {name: i for i, name in enumerate(names, UNKNOWN + 1)}
        return cls(names, tuple(i for _, i in known), indices, tokenizer)

    def index(self, item: Any) -> int:
        return self.indices.get(str(item), UNKNOWN)

    def save_pretrained(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


class ItemHead(nn.Module):
    """What trains whatever the adapter does: a bias for each item, `[I]`, vectors of new items, `[N, D]`, and (on
    request) what known items' vectors are moved by, `[K, D]`, at first by nothing."""

    def __init__(self, items: int, new: int, known: Tensor | None, moved: int, width: int, device: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(items, device=device))
        if moved:
            self.moved = nn.Parameter(torch.zeros(moved, width, device=device))
        if new:
            self.new = nn.Parameter(torch.empty(new, width, device=device))
            nn.init.normal_(self.new, 0, 0.02)
            if known is not None and not self.new.is_meta:
                with torch.no_grad():  # near what is known of items in general, so that it does not stand out
                    self.new.add_(known.float().mean(0))


@dataclass
class Recommended:
    """`hidden` `[B, T, D]` after each item, `vectors` `[I, D]` and `bias` `[I]` of the items, and their names."""

    hidden: Tensor
    vectors: Tensor
    bias: Tensor
    names: tuple[str, ...]

    def scores(self, hidden: Tensor) -> Tensor:
        """`[N, D]` to `[N, I]`, float32: by index, the first of which is UNKNOWN."""
        return hidden.float() @ self.vectors.T + self.bias


class ItemModel(nn.Module):
    """`[B, T]` indices of a catalogue, oldest first, through a causal transformer without its output layer."""

    base_model_prefix = "backbone"
    known: Tensor

    def __init__(self, backbone: Any, catalogue: Catalogue, moves_known: bool = False) -> None:
        super().__init__()
        config = getattr(backbone, "config", None)
        accepted = inspect.signature(backbone.forward).parameters
        takes = "inputs_embeds" in accepted and "use_cache" in accepted
        if not takes or getattr(config, "is_encoder_decoder", False) or decoders.reads_both_ways(config):
            raise ModelError(
                f"next-item: {type(backbone).__name__} is no decoder (a model that reads from left to right) that takes"
                " inputs_embeds: use a causal language model, such as example:recommender-tiny"
            )
        self.backbone = backbone
        self.config = backbone.config
        self.names = catalogue.names
        table = backbone.get_input_embeddings().weight
        device = table.device
        self.register_buffer("known", torch.tensor(catalogue.known, dtype=torch.long, device=device), persistent=False)
        new = len(catalogue.names) - len(catalogue.known)
        mean_of = table[self.known].detach() if len(catalogue.known) and not table.is_meta else None
        moved = len(catalogue.known) if moves_known else 0
        self.head = ItemHead(len(catalogue.names) + 1, new, mean_of, moved, table.shape[1], device)

    def vectors(self) -> Tensor:
        """`[I, D]`, float32: zero, the vectors of known items as the model has them, those of new ones."""
        table = self.backbone.get_input_embeddings().weight
        parts = [table.new_zeros(1, table.shape[1], dtype=torch.float32)]
        if len(self.known):
            known = table[self.known].float()
            parts.append(known + self.head.moved if hasattr(self.head, "moved") else known)
        if hasattr(self.head, "new"):
            parts.append(self.head.new)
        return torch.cat(parts)

    def forward(self, items: Tensor, attention_mask: Tensor) -> Recommended:
        vectors = self.vectors()
        given = vectors[items].to(self.backbone.get_input_embeddings().weight.dtype)
        hidden = self.backbone(inputs_embeds=given, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return Recommended(hidden, vectors, self.head.bias, self.names)
