"""chat: answer as the assistant does in the data; loss on assistant tokens only, through the model's own template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from pefttool import Loaded, Row, Setting
from pefttool_text import chat_masks, chat_rows, chat_template
from pefttool_text.chat_masks import TrainTurns
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_template import Template, TemplateOptions
from pefttool_text.language_model import LanguageModel, counted

REWRITTEN = "rewritten"


class ChatOptions(TemplateOptions):
    messages_column: str | None = Field(
        None, description="column with the list of messages; default: `messages` or `conversations`"
    )
    train_turns: TrainTurns = Field(
        "auto",
        description="which of the assistant's messages are learnt: `all`, the `last` of each row, or `auto`: all where"
        " the model's chat template writes earlier ones as they were asked for, else the last",
    )


class Chat(LanguageModel):
    """Answer as the assistant does in the data; the loss is on assistant tokens only."""

    name = "chat"
    converses = True
    Options = ChatOptions
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:smollm2-135m-instruct",
        "quantize": "nf4",
        "data": {"train": "example:chatterbot-english", "max_train_rows": 300, "max_eval_rows": 64},
    }

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        if len({chat_rows.shape(values) for values in sample}) != 1:
            return None
        return chat_rows.described(sample[0])

    def load(self, source: Any, setting: Setting) -> Loaded:
        loaded = super().load(source, setting)
        if loaded.processor is not None:
            chat_template.require(loaded.processor)  # plans load too, so this is said before any weight is read
            chat_template.require_prompt(loaded.processor)
        return loaded

    def recognise_model(self, config: Any) -> str | None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        said = " ".join(getattr(config, "architectures", None) or ())
        if "ForConditionalGeneration" in said and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return f"{config.model_type} answers in text (of pictures and text, only text is used here)"
        return None

    def check_row(self, values: Mapping[str, Any], options: ChatOptions) -> str | None:
        try:
            chat_rows.find(values, options.messages_column)
        except ValueError as error:
            return str(error)
        return None

    def check_input(self, values: Mapping[str, Any], options: ChatOptions) -> str | None:
        try:
            self._question(values, options)
        except ValueError as error:
            return str(error)
        return None

    def reads(self, values: Mapping[str, Any], options: ChatOptions) -> Iterable[str]:
        return chat_rows.reads(values, options.messages_column if options.messages_column in values else None)

    def key(self, values: Mapping[str, Any], options: ChatOptions) -> str:
        return chat_rows.key(chat_rows.find(values, options.messages_column))

    def remarks(self, rows: Sequence[Row], options: ChatOptions) -> Sequence[str]:
        found = [chat_rows.find(row.values, options.messages_column) for row in rows]
        context, learnt = sum(c.context for c in found), sum(len(c.learnt) for c in found)
        if not context:
            return ()
        said = f"{context} of {context + learnt} messages of the assistant are context and not learnt"
        return (f"{said}: they have weight 0, or train false",)

    def encoding_options(self, options: ChatOptions, processor: Any) -> ChatOptions:
        return chat_template.without_date(options, processor)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """`rewritten` counts answers that are context as the template gives no way to learn them."""
        options, most = setting.options, setting.sequence_length
        conversation = chat_rows.find(row.values, options.messages_column)
        template = Template(processor, options.date, row.place, conversation.tools)
        ids, labels, rewritten = chat_masks.masked(template, conversation, options.train_turns)
        return {**counted(ids[:most], labels[:most], len(ids) > most), REWRITTEN: rewritten}

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        count = sum(example.get(REWRITTEN, 0) for example in train)
        rows = sum(example.get(REWRITTEN, 0) > 0 for example in train)
        if not count:
            return ()
        return (
            f"{count} earlier messages of the assistant, in {rows} rows, are context and not learnt: the model's chat"
            " template writes them in another way than it asks for them (task.train_turns)",
        )

    def untrained(self, example: Mapping[str, Any], processor: Any, setting: Setting) -> str:
        said = super().untrained(example, processor, setting)
        return said if setting.options.train_turns != "last" else f"its last answer is not to be learnt, or {said}"

    def prompt_ids(self, row: Row, processor: Any, setting: Setting) -> list[int]:
        asked = self._question(row.values, setting.options)
        text = chat_template.written(processor, asked, setting.options.date, row.place)
        return list(processor(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _question(values: Mapping[str, Any], options: ChatOptions) -> Conversation:
        """The turns up to the answer that is wanted. Raises ValueError("found ..., expected ...").

        What somebody types (`evaluate.typed`) has a `text`, and its turns where they usually stand, whatever the
        column with messages is called in the data.
        """
        column = options.messages_column
        if isinstance(values.get("text"), str) and (column == "text" or column not in values):
            column = None
            if chat_rows.shape(values) is None:
                return Conversation([{"role": "user", "content": values["text"]}])
        found = chat_rows.find(values, column, answered=False)
        return found.question

    def answer(self, row: Row, text: str) -> dict[str, Any]:
        return {"answer": text.strip()}
