"""What the tasks on a text encoder share: inputs as tensors, the new head, and loading with a fast tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool import Loaded, ModelError, Task
from pefttool_text.batching import attention_mask, kind_of, pad, pad_id

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Models whose head for classes reads what `summary_type` of their config says.
SUMMARISED = ("flaubert", "xlm", "xlnet")
#: Which of two texts a token belongs to; only some models have embeddings for it.
TYPES = "token_type_ids"


def input_tensors(examples: Sequence[Mapping[str, Any]], processor: Any, most: int | None = None) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, where the rows carry them, `token_type_ids`: `[B, T]` int64."""
    ids = [e["input_ids"] for e in examples]
    batch = {"input_ids": pad(ids, pad_id(processor), most=most), "attention_mask": attention_mask(ids, most=most)}
    if TYPES in examples[0]:
        batch[TYPES] = pad([e[TYPES] for e in examples], 0, most=most)
    return batch


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch that a model is called with."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", TYPES) if name in batch}


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """What stands beside the backbone and has parameters: the head that transformers' class for the task puts on it."""
    from torch import nn
    from transformers import PreTrainedModel

    backbone = getattr(model, "base_model_prefix", "backbone")
    # Some have no backbone of that name, but its parts beside the head (T5's encoder, decoder and embeddings).
    parts = (PreTrainedModel, nn.Embedding)
    return tuple(
        n
        for n, m in model.named_children()
        if n != backbone and not isinstance(m, parts) and any(True for _ in m.parameters())
    )


def load(source: Any, auto_class: Any, names: Sequence[str] = (), **more: Any) -> Loaded:
    """The model with a head for these class `names`, and its tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = source.processor(AutoTokenizer)
    described: dict[str, Any] = dict(more)
    if names:
        described |= {"num_labels": len(names), "id2label": dict(enumerate(names))}
        described |= {"label2id": {name: i for i, name in enumerate(names)}}
    # A decoder classifies by the last token that is no padding: it has to know what batches are padded with. Others
    # keep theirs, by which some count positions. (A model of pictures has none; its class is refused below.)
    if getattr(source.config, "pad_token_id", None) is None or (tokenizer and kind_of(source.config) == "decoder"):
        described["pad_token_id"] = pad_id(tokenizer)
    # Stored with the adapter and with a merged model, so that whoever loads them pads alike.
    if getattr(tokenizer, "pad_token", "") is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return Loaded(source.model(auto_class, **described), tokenizer)


def require_first(config: Any) -> None:
    """Raise ModelError where the model's own head would read padding: batches are padded behind a text."""
    if config.model_type in SUMMARISED and config.summary_type in ("last", "cls_index"):
        raise ModelError(
            f"the head of a {config.model_type!r} model reads a text's last position, where batches are padded: use"
            " -o task.pooling=mean"
        )


def require_offsets(task: Task, loaded: Loaded) -> Loaded:
    """`loaded`, unless its tokenizer cannot say where in the text a token stands. Raises ModelError."""
    tokenizer = loaded.processor
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"task {task.name!r} has to know where in the text a token stands, which {type(tokenizer).__name__} does"
            " not say: use a model with a tokenizer.json"
        )
    return loaded
