"""chat: answer as the assistant does in the data; loss on assistant tokens only, through the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from pefttool import DataError, Loaded, ModelError, Options, Row, Setting
from pefttool_text import chat_rows
from pefttool_text.batching import IGNORE
from pefttool_text.chat_rows import Message
from pefttool_text.language_model import LanguageModel, counted


class ChatOptions(Options):
    messages_column: str | None = Field(
        None, description="column with the list of messages; default: `messages` or `conversations`"
    )


class Chat(LanguageModel):
    """Answer as the assistant does in the data; the loss is on assistant tokens only."""

    name = "chat"
    Options = ChatOptions
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:smollm2-135m-instruct",
        "quantize": "nf4",
        "data": {"train": "example:chatterbot-english", "max_train_rows": 300, "max_eval_rows": 64},
    }

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        shapes = {chat_rows.shape(values) for values in sample}
        if len(shapes) != 1:
            return None
        (found,) = shapes
        return chat_rows.SHAPES[found] if found else None

    def load(self, source: Any, setting: Setting) -> Loaded:
        loaded = super().load(source, setting)
        if loaded.processor is not None:
            _require_template(loaded.processor)  # plans load too, so this is said before any weight is read
        return loaded

    def recognise_model(self, config: Any) -> str | None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        said = " ".join(getattr(config, "architectures", None) or ())
        if "ForConditionalGeneration" in said and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return f"{config.model_type} answers in text (of pictures and text, only text is used here)"
        return None

    def check_row(self, values: Mapping[str, Any], options: ChatOptions) -> str | None:
        try:
            chat_rows.messages(values, options.messages_column)
        except ValueError as error:
            return str(error)
        return None

    def check_input(self, values: Mapping[str, Any], options: ChatOptions) -> str | None:
        try:
            self._question(values, options)
        except ValueError as error:
            return str(error)
        return None

    def key(self, values: Mapping[str, Any], options: ChatOptions) -> str:
        turns = chat_rows.messages(values, options.messages_column)
        return "\n".join(f"{t['role']}: {' '.join(t['content'].split())}" for t in turns)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        turns = chat_rows.messages(row.values, setting.options.messages_column)
        ids, labels = labelled(*render(turns, processor, row.place), processor)
        truncated = len(ids) > setting.sequence_length
        return counted(ids[: setting.sequence_length], labels[: setting.sequence_length], truncated)

    def prompt_ids(self, row: Row, processor: Any, setting: Setting) -> list[int]:
        turns = self._question(row.values, setting.options)
        text = template(processor, turns, add_generation_prompt=True)
        return list(processor(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _question(values: Mapping[str, Any], options: ChatOptions) -> list[Message]:
        """The turns up to the answer that is wanted. Raises ValueError("found ..., expected ...").

        What somebody types (`evaluate.typed`) has a `text`, and its turns where they usually stand, whatever the
        column with messages is called in the data.
        """
        column = options.messages_column
        if isinstance(values.get("text"), str) and (column == "text" or column not in values):
            column = None
            if chat_rows.shape(values) is None:
                return [{"role": "user", "content": values["text"]}]
        turns = chat_rows.messages(values, column, answered=False)
        return turns[:-1] if turns[-1]["role"] == "assistant" else turns

    def answer(self, row: Row, text: str) -> dict[str, Any]:
        return {"answer": text}


def _require_template(processor: Any) -> None:
    if not getattr(processor, "chat_template", None):
        raise ModelError(
            "this model's tokenizer has no chat template: use an instruction-tuned model, or --task"
            " causal-lm on rendered text"
        )


def template(processor: Any, turns: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The model's own chat template over these turns, as text."""
    _require_template(processor)
    return str(processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=add_generation_prompt))


def labelled(text: str, spans: Sequence[tuple[int, int]], processor: Any, special: bool = False) -> tuple[Any, Any]:
    """(ids, labels) of the text; the labels are IGNORE but for tokens that lie within a span of characters."""
    encoded = processor(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    labels = [IGNORE] * len(ids)
    for i, (start, end) in enumerate(offsets):
        # A token that straddles the border carries prompt characters: it is not the assistant's to learn.
        if end > start and any(first <= start and end <= last for first, last in spans):
            labels[i] = ids[i]
    return ids, labels


def render(turns: Sequence[Message], processor: Any, place: str, first: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the character spans that the assistant says, end-of-turn token included.

    Turns before the `first` are not looked for. A span is what the template adds for an assistant turn after its
    generation prompt: that is exactly what the model has to produce when it is used. Raises DataError where the
    template rewrites earlier turns.
    """
    text = template(processor, turns)
    spans = []
    for i, turn in enumerate(turns):
        if i < first or turn["role"] != "assistant":
            continue
        before = template(processor, turns[:i], add_generation_prompt=True)
        after = template(processor, turns[: i + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise DataError(
                f"{place}: the model's chat template rewrites earlier turns, so turn {i + 1} cannot be located;"
                " give one answer a row (split the conversation), so that only the last turn is trained"
            )
        spans.append((len(before), len(after.rstrip())))
    return text, spans
