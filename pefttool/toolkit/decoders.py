"""Whether a model reads from left to right: to an encoder that is asked for the next token, the answer is shown.

transformers puts an output layer for next tokens on encoders, too (`BertLMHeadModel`), and lets them see the whole text
unless their config says `is_decoder`: they learn to copy the answer, and their loss says nothing.
"""

from __future__ import annotations

from typing import Any

from pefttool.api.errors import ModelError

__all__ = ["reads_both_ways", "require"]

#: Encoders in transformers' list of causal language models that have no masked output layer.
UNMASKED = ("bert-generation", "xlnet")
#: Switches of configs that make a decoder of an encoder.
SWITCHES = ("is_decoder", "causal")


def reads_both_ways(config: Any) -> bool:
    """Whether a token's state depends on those behind it, by what a transformers config says of itself and its type.

    Of an encoder-decoder the decoder is meant, which reads from left to right.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model_type = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        return False
    if getattr(config, "use_bidirectional_attention", None) is True:  # Gemma 3, made into an encoder
        return True
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and model_type not in UNMASKED:
        return False
    return not any(getattr(config, name, False) for name in SWITCHES)


def require(config: Any, task: str) -> None:
    """Raise ModelError, with what to use instead, where a model of this config is no decoder."""
    if reads_both_ways(config):
        masked = "" if config.model_type in UNMASKED else "masked-lm, or "
        raise ModelError(
            f"task {task!r} needs a decoder (a model that reads from left to right), and this is an encoder"
            f" ({config.model_type!r}): use {masked}a decoder"
        )
