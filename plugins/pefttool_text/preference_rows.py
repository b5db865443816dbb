"""The shapes that preferences come in: a prompt, a preferred and a rejected answer, as texts or as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pefttool.named_columns import describe, find_column, missing_column
from pefttool_text import chat_rows
from pefttool_text.chat_rows import Message

PROMPT_COLUMNS = ("prompt", "question", "instruction")
CHOSEN_COLUMNS = ("chosen", "preferred")
REJECTED_COLUMNS = ("rejected", "dispreferred")


class PreferenceColumns(Protocol):
    @property
    def prompt_column(self) -> str | None: ...
    @property
    def chosen_column(self) -> str | None: ...
    @property
    def rejected_column(self) -> str | None: ...


class Preference(NamedTuple):
    """The conversation up to the answer, and two answers to it. `plain`: the prompt was one text, not messages."""

    prompt: list[Message]
    chosen: str
    rejected: str
    plain: bool


def find(values: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    """The preference of a row. Raises ValueError("found ..., expected ...")."""
    names = []
    for given, usual, option in (
        (columns.chosen_column, CHOSEN_COLUMNS, "chosen_column"),
        (columns.rejected_column, REJECTED_COLUMNS, "rejected_column"),
    ):
        name = find_column(values, given, usual)
        if name is None:
            raise ValueError(missing_column(values, given, usual, option))
        names.append(name)
    answers = [_answer(values[name], name) for name in names]
    prompt, plain = question(values, columns, answers)
    texts = []
    for name, answer in zip(names, answers, strict=True):
        own = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
        if len(own) != 1 or own[0]["role"] != "assistant":
            raise ValueError(
                f"column {name!r}: found {len(own)} messages after the prompt, expected one, the assistant's"
            )
        if not own[0]["content"].strip():
            raise ValueError(f"column {name!r}: found {describe(own[0]['content'])}, expected text")
        texts.append(own[0]["content"])
    if texts[0] == texts[1]:
        raise ValueError(f"columns {names[0]!r} and {names[1]!r}: found the same answer twice, expected two to compare")
    return Preference(prompt, texts[0], texts[1], plain)


def question(
    values: Mapping[str, Any], columns: PreferenceColumns, answers: Sequence[list[Message]] = ()
) -> tuple[list[Message], bool]:
    """(the conversation up to the answer, whether it was one text). Without a prompt it is what both answers begin
    with."""
    name = find_column(values, columns.prompt_column, PROMPT_COLUMNS)
    if name is None:
        shared = _shared(answers)
        if not shared:
            raise ValueError(missing_column(values, columns.prompt_column, PROMPT_COLUMNS, "prompt_column"))
        return _checked(shared, "both answers"), False
    value = values[name]
    plain = isinstance(value, str)
    if plain:
        if not value.strip():
            raise ValueError(f"column {name!r}: found {describe(value)}, expected text or messages")
        system = values.get("system")
        first = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
        shared = _shared(answers)  # UltraFeedback repeats the prompt in both answers
        if shared and shared[-1]["content"] == value:
            return _checked(shared, "both answers"), False
        return [*first, {"role": "user", "content": value}], not first
    return _checked(_messages(value, name), f"column {name!r}"), False


def _answer(value: Any, name: str) -> list[Message]:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else _messages(value, name)


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {name!r}: found {describe(value)}, expected text or messages")
    return [chat_rows.read_turn(name, i, one) for i, one in enumerate(value)]


def _shared(answers: Sequence[list[Message]]) -> list[Message]:
    """The turns that both begin with, up to the last of them that is not the assistant's."""
    shared: list[Message] = []
    for one, other in zip(*answers, strict=False) if len(answers) == 2 else ():
        if one != other:
            break
        shared.append(one)
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    return shared


def _checked(turns: list[Message], what: str) -> list[Message]:
    try:
        chat_rows.check_order(turns, answered=False)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if turns[-1]["role"] != "user":
        raise ValueError(
            f"{what}: found a prompt that ends with the {turns[-1]['role']}, expected the user's turn last"
        )
    return turns
