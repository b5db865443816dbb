"""Padding and column lookup that the text tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttool.toolkit import decoders

if TYPE_CHECKING:
    from torch import Tensor

#: Positions with this label do not count in the loss (PyTorch's and transformers' convention).
IGNORE = -100


def pad(sequences: Sequence[Sequence[int]], value: int, multiple: int | None = None, most: int | None = None) -> Tensor:
    """`[B, T]` int64, right-padded with `value`; T is the longest sequence, rounded up to `multiple` (`width_step()` by
    default), but to no more than `most`: behind a prefix the model may have no position left for padding.
    """
    import numpy as np
    import torch

    padded = np.full((len(sequences), _width(sequences, multiple, most)), value, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence  # eight times as fast as through a tensor of every row
    return torch.from_numpy(padded)


def attention_mask(sequences: Sequence[Sequence[int]], multiple: int | None = None, most: int | None = None) -> Tensor:
    """`[B, T]` int64, of the shape of `pad`'s: 1 for a real token, 0 for padding."""
    import torch

    lengths = torch.tensor([len(s) for s in sequences])
    return (torch.arange(_width(sequences, multiple, most)) < lengths[:, None]).long()


def width_step() -> int:
    """Widths are multiples of this. GPUs like 8; on a CPU that is only more to compute."""
    import torch

    return 8 if torch.cuda.is_available() else 1


def _width(sequences: Sequence[Sequence[int]], multiple: int | None, most: int | None) -> int:
    longest = max(len(s) for s in sequences)
    multiple = multiple or width_step()
    return max(longest, min(-(-longest // multiple) * multiple, most or longest + multiple))


def pad_id(tokenizer: Any) -> int:
    """The id that fills up batches. Its value never matters: masks and labels exclude it, also where it equals EOS."""
    for candidate in (getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None), 0):
        if candidate is not None:
            return int(candidate)
    return 0


def kind_of(config: Any) -> str | None:
    """`encoder`, `decoder` or `encoder-decoder` of text, by what a config says of itself or its type; or None."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder" if config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else None
    if decoders.reads_both_ways(config):
        return "encoder"  # whatever class it was saved as
    said = " ".join(getattr(config, "architectures", None) or ())
    if "ForCausalLM" in said or "LMHeadModel" in said:
        return "decoder"
    if "ForConditionalGeneration" in said:
        return None  # its decoder continues text, but what it is meant for comes through its encoder
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    return "decoder" if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None
