"""What plain transformers says of texts: the right values for the cases about labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch


def scores(folder: Path, *texts: str) -> dict[str, float]:
    """The probability of each class of a model's folder, by the name that its own config gives it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        shares = model.eval()(**tokenizer(*texts, return_tensors="pt")).logits[0].softmax(-1)
    return {model.config.id2label[i]: float(share) for i, share in enumerate(shares)}


def among(names: list[str], found: Mapping[str, float]) -> dict[str, float]:
    """The same probabilities, where these classes are the only ones."""
    total = sum(found[name] for name in names)
    return {name: found[name] / total for name in names}
