"""What is found in models of every family without the user's help: blocks, attention, linear layers, positions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from architectures import ARCHITECTURES, OTHERS
from torch import nn

from pefttool import Facts
from pefttool.models import facts
from pefttool.toolkit.model_parts import last_layer_parameters
from pefttool_lora.options import LoraOptions, linear, resolve

#: kind: where its blocks are (encoder's first), how many linear layers each has.
BLOCKS = {
    "albert": (["albert.encoder.albert_layer_groups.{}"], [1], 6),
    "bart": (["model.encoder.layers.{}", "model.decoder.layers.{}"], [2, 3], 6),
    "bert": (["bert.encoder.layer.{}"], [2], 6),
    "deberta-v2": (["deberta.encoder.layer.{}"], [2], 6),
    "detr": (["model.encoder.layers.{}", "model.decoder.layers.{}"], [2, 3], 6),
    "dinov2": (["dinov2.encoder.layer.{}"], [2], 6),
    "distilbert": (["distilbert.transformer.layer.{}"], [2], 6),
    "gemma2": (["model.layers.{}"], [2], 7),
    "gpt2": (["transformer.h.{}"], [2], 0),
    "llama": (["model.layers.{}"], [2], 7),
    "mistral": (["model.layers.{}"], [2], 7),
    "modernbert": (["model.layers.{}"], [2], 4),
    "mpnet": (["mpnet.encoder.layer.{}"], [2], 6),
    "patchtst": (["model.encoder.layers.{}"], [2], 6),
    "roberta": (["roberta.encoder.layer.{}"], [2], 6),
    "t5": (["encoder.block.{}", "decoder.block.{}"], [2, 2], 6),
    "vit": (["vit.layers.{}"], [2], 6),
    "wav2vec2": (["wav2vec2.encoder.layers.{}"], [2], 6),
    "whisper": (["model.encoder.layers.{}", "model.decoder.layers.{}"], [2, 3], 6),
    "yolos": (["vit.encoder.layer.{}"], [2], 6),
}
#: Where a family limits the length of its text; RoBERTa's first position stands behind that of its padding.
POSITIONS = {
    "roberta": 63,
    "whisper": 32,
    "mpnet": 62,
    **dict.fromkeys(("t5", "wav2vec2", "vit", "dinov2", "detr", "yolos", "patchtst"), 0),
}
HEADS = {
    "detr": ("class_labels_classifier", "bbox_predictor"),
    "yolos": ("class_labels_classifier", "bbox_predictor"),
    "wav2vec2": ("lm_head",),
    "patchtst": ("head",),
    "distilbert": ("pre_classifier", "classifier"),
    "modernbert": ("head", "classifier"),
    **dict.fromkeys(("bert", "albert", "roberta", "vit", "dinov2", "mpnet"), ("classifier",)),
    "deberta-v2": ("pooler", "classifier"),
}


class Anything:
    name, peft_task_type = "anything", None

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def unused(self, model: Any) -> tuple[str, ...]:
        return ()

    def left_alone(self, model: Any) -> tuple[str, ...]:
        return ()

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return HEADS.get(self.kind, ())


@cache
def inspected(kind: str) -> tuple[Any, Facts]:
    import torch

    with torch.device("meta"):
        model = {**ARCHITECTURES, **OTHERS}[kind].build()
    return model, facts.inspect(model, Anything(kind))  # type: ignore[arg-type]


def test_no_family_is_left_out() -> None:
    assert BLOCKS.keys() == {*ARCHITECTURES, *OTHERS}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_every_stack_in_order(kind: str) -> None:
    patterns, counts, linears = BLOCKS[kind]
    _, found = inspected(kind)
    expected = [pattern.format(i) for pattern, count in zip(patterns, counts, strict=True) for i in range(count)]
    assert list(found.layers) == expected
    inside = [name for name in found.linear_modules if name.startswith(f"{expected[0]}.")]
    assert len(inside) == linears


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_attends(kind: str) -> None:
    _, found = inspected(kind)
    for layer in found.layers:
        assert any(name.startswith(f"{layer}.") for name in found.attention_modules), layer
    if kind in ARCHITECTURES:
        assert {held.module for held in found.key_values} <= set(found.attention_modules)
    heads = tuple(f"{head}." for head in HEADS.get(kind, ()))
    assert not [name for name in (*found.attention_modules, *found.linear_modules) if heads and name.startswith(heads)]


@pytest.mark.parametrize("kind", BLOCKS)
def test_lora_reaches_every_block_and_no_head_by_default(kind: str) -> None:
    _, found = inspected(kind)
    targets = resolve(LoraOptions(), found)
    for layer in found.layers:
        assert [name for name in targets if name.startswith(f"{layer}.")], layer
    outside = (*HEADS.get(kind, ()), *found.output_modules)
    assert not [name for name in targets if name.startswith(outside) and outside]


@pytest.mark.parametrize("kind", BLOCKS)
def test_positions(kind: str) -> None:
    assert inspected(kind)[1].positions == POSITIONS.get(kind, 64)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_last_blocks_and_what_follows_them(kind: str) -> None:
    """The last one, and all: no embedding, no head, nothing before them."""
    model, found = inspected(kind)
    modules = dict(model.named_modules())
    for count in (1, len(found.layers)):
        names = last_layer_parameters(model, found, count)
        chosen = found.layers[-count:]
        for layer in chosen:
            assert {f"{layer}.{n}" for n, _ in modules[layer].named_parameters()} <= set(names)
        beside = [name for name in names if not name.startswith(tuple(f"{layer}." for layer in chosen))]
        assert not [n for n in beside if isinstance(modules[n.rpartition(".")[0]], nn.Embedding)], beside
        assert not [
            n for n in beside if n.startswith(tuple(f"{h}." for h in (*HEADS.get(kind, ("?",)), *found.output_modules)))
        ]
        assert len(beside) <= 6, beside
