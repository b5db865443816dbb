"""Tokens that a tokenizer has and a model has no row for: rows with such a token are refused, others do no harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import DataError, ModelError
from pefttool.api.values import Row
from pefttool.toolkit.model_parts import transformers_part

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Beyond:
    """`tokens` by their ids, of a tokenizer with `known` tokens and a model with `rows` rows of embeddings."""

    tokens: Mapping[int, str]
    known: int
    rows: int

    def first(self, ids: Iterable[int]) -> str | None:
        """What is wrong with the first of these ids that has no row, or None."""
        found = next((i for i in ids if i in self.tokens), None)
        if found is None:
            return None
        return (
            f"token {self.tokens[found]!r} (id {found}) has no row in the model's embeddings: the tokenizer has"
            f" {self.known:,} tokens, the model {self.rows:,} rows; take the token out of the text, or save the model"
            f" with more rows (transformers' resize_token_embeddings)"
        )


def beyond(model: nn.Module, processor: Any) -> Beyond | None:
    """The tokens without a row; None where there are none, or no text is read."""
    tokenizer = getattr(processor, "tokenizer", processor)
    table = _table(model)
    if table is None or not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary, rows = tokenizer.get_vocab(), int(table.weight.shape[0])
    tokens = {i: token for token, i in vocabulary.items() if i >= rows}
    return Beyond(tokens, len(vocabulary), rows) if tokens else None


def check(model: nn.Module, processor: Any, examples: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """Raise DataError for the first encoded row with such a token, ModelError where batches are padded with one."""
    found = beyond(model, processor)
    if found is None:
        return
    padding = getattr(getattr(processor, "tokenizer", processor), "pad_token_id", None)
    complaint = None if padding is None else found.first([padding])
    if complaint is not None:
        raise ModelError(f"the tokenizer's padding: {complaint}")
    for example, row in zip(examples, rows, strict=True):
        for value in example.values():
            complaint = found.first(_ids(value))
            if complaint is not None:
                raise DataError(f"{row.place}: {complaint}")


def guard(model: nn.Module, processor: Any) -> None:
    """Let the model's embeddings raise DataError for such a token, instead of an IndexError."""
    found, table = beyond(model, processor), _table(model)
    if found is None or table is None:
        return
    known = found

    def require(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        complaint = known.first(arguments[0].flatten().tolist()) if arguments else None
        if complaint is not None:
            raise DataError(complaint)

    table.register_forward_pre_hook(require)


def _table(model: nn.Module) -> Any:
    """The embeddings of the tokens that the model reads, or None."""
    from torch import nn

    get = getattr(transformers_part(model), "get_input_embeddings", None)
    try:
        table = get() if get is not None else None
    except (NotImplementedError, AttributeError):
        return None  # a model of pictures or of sound
    return table if isinstance(table, nn.Embedding) else None


def _ids(value: Any) -> Iterable[int]:
    """The numbers of an encoded column, if it is a list of some."""
    if isinstance(value, list | tuple):
        return (item for item in value if isinstance(item, int))
    if getattr(value, "ndim", 0) == 1 and getattr(getattr(value, "dtype", None), "kind", "") in "iu":
        return (int(item) for item in value)
    return ()
