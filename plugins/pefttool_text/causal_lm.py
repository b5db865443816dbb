"""causal-lm: continue plain text; every token is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from pefttool import Options, Row, Setting
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text.batching import kind_of
from pefttool_text.borders import opening
from pefttool_text.language_model import LanguageModel, counted

TEXT_COLUMNS = ("text", "content", "body")


class CausalLMOptions(Options):
    text_column: str | None = Field(
        None, description=f"column with the text; default: the first of {', '.join(TEXT_COLUMNS)}"
    )


class CausalLM(LanguageModel):
    """Continue plain text; every token is trained."""

    name = "causal-lm"
    Options = CausalLMOptions
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:smollm2-135m-instruct",
        "quantize": "nf4",
        "data": {"train": "example:python-reference", "max_train_rows": 300, "max_eval_rows": 64},
    }

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        # A class or an answer beside the text makes it another task's.
        known = find_column(columns, None, TEXT_COLUMNS) is not None
        if len(columns) == 1 and known and all(isinstance(v.get(columns[0]), str) for v in sample):
            return f"column {columns[0]!r} alone (plain text)"
        return None

    def recognise_model(self, config: Any) -> str | None:
        if kind_of(config) == "decoder":
            return f"{config.model_type} continues text"
        return None

    def check_row(self, values: Mapping[str, Any], options: CausalLMOptions) -> str | None:
        column = find_column(values, options.text_column, TEXT_COLUMNS)
        if column is None:
            return missing_column(values, options.text_column, TEXT_COLUMNS, "text_column")
        if not isinstance(values[column], str) or not values[column].strip():
            return f"column {column!r}: found {describe(values[column])}, expected text"
        return None

    def check_input(self, values: Mapping[str, Any], options: CausalLMOptions) -> str | None:
        return self.check_row(values, options)

    def reads(self, values: Mapping[str, Any], options: CausalLMOptions) -> Iterable[str]:
        return [find_column(values, options.text_column, TEXT_COLUMNS) or "text"]

    def key(self, values: Mapping[str, Any], options: CausalLMOptions) -> str:
        return " ".join(self._text(values, options).split())

    def _text(self, values: Mapping[str, Any], options: CausalLMOptions) -> str:
        return str(values[find_column(values, options.text_column, TEXT_COLUMNS) or "text"])

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        ids = list(processor(self._text(row.values, setting.options))["input_ids"])
        eos = processor.eos_token_id
        if eos is not None and (not ids or ids[-1] != eos):
            ids.append(eos)
        truncated = len(ids) > setting.sequence_length
        ids = ids[: setting.sequence_length]
        return counted(ids, list(ids), truncated)

    def prompt_ids(self, row: Row, processor: Any, setting: Setting) -> list[int]:
        """The first half of the text (at least one token): the rest is for the model to write."""
        ids = opening(processor, self._text(row.values, setting.options))
        if row.file == "<text>":
            return ids
        return ids[: max(1, len(ids) // 2)]

    def answer(self, row: Row, text: str) -> dict[str, Any]:
        return {"continuation": text}
