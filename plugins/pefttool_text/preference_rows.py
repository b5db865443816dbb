"""The shapes that preferences come in: a prompt, a preferred and a rejected answer, as texts or as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text import chat_rows, chat_turns
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_turns import Turn

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

    prompt: list[Turn]
    chosen: Turn
    rejected: Turn
    plain: bool
    tools: list[Mapping[str, Any]] | None = None

    def answered(self, answer: Turn) -> Conversation:
        """The conversation with this answer, which alone is learnt."""
        return Conversation([*self.prompt, answer], (len(self.prompt),), self.tools)


def find(values: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    """The preference of a row. Raises ValueError("found ..., expected ...")."""
    names = answer_columns(values, columns)
    answers = [_answer(values[name], name) for name in names]
    prompt, plain = question(values, columns, answers)
    given = []
    for name, answer in zip(names, answers, strict=True):
        said = [turn for turn in prompt if turn["role"] != "system"]  # which may stand in a column of its own
        own = next((answer[len(part) :] for part in (prompt, said) if answer[: len(part)] == part), answer)
        if len(own) != 1 or own[0]["role"] != "assistant":
            raise ValueError(
                f"column {name!r}: found {len(own)} messages after the prompt, expected one, the assistant's, with"
                " everything before it the same in both answers"
            )
        if not own[0]["content"].strip() and not own[0].get("tool_calls"):
            raise ValueError(f"column {name!r}: found {describe(own[0]['content'])}, expected text")
        given.append(own[0])
    if given[0] == given[1]:
        raise ValueError(f"columns {names[0]!r} and {names[1]!r}: found the same answer twice, expected two to compare")
    return Preference(prompt, given[0], given[1], plain, chat_rows.tools(values))


def answer_columns(values: Mapping[str, Any], columns: PreferenceColumns) -> tuple[str, str]:
    """The columns of the chosen and of the rejected answer. Raises ValueError."""
    names = []
    for given, usual, option in (
        (columns.chosen_column, CHOSEN_COLUMNS, "chosen_column"),
        (columns.rejected_column, REJECTED_COLUMNS, "rejected_column"),
    ):
        name = find_column(values, given, usual)
        if name is None:
            raise ValueError(missing_column(values, given, usual, option))
        names.append(name)
    return names[0], names[1]


def question(
    values: Mapping[str, Any], columns: PreferenceColumns, answers: Sequence[list[Turn]] = ()
) -> tuple[list[Turn], bool]:
    """(the conversation up to the answer, whether it was one text). Without a prompt it is what both answers begin
    with."""
    name = find_column(values, columns.prompt_column, PROMPT_COLUMNS)
    if name is None:
        shared = _shared(answers)
        if not shared:
            raise ValueError(missing_column(values, columns.prompt_column, PROMPT_COLUMNS, "prompt_column"))
        return _checked(shared, values, "both answers"), False
    value = values[name]
    if isinstance(value, str) and chat_turns.written(value) is None:
        if not value.strip():
            raise ValueError(f"column {name!r}: found {describe(value)}, expected text or messages")
        shared = _shared(answers)  # UltraFeedback repeats the prompt in both answers
        if shared and shared[-1]["content"] == value:
            return _checked(shared, values, "both answers"), False
        asked = chat_rows.question(values, name)
        before = [*chat_rows.system(values, []), *chat_rows.earlier(values)]
        return _checked([*before, asked], {}, f"column {name!r}"), not before
    return _checked(_messages(value, name), values, f"column {name!r}"), False


def reads(values: Mapping[str, Any], columns: PreferenceColumns) -> list[str]:
    """What of a row `find` makes use of. Weights are not: what is compared is the last message of each answer."""
    prompt = find_column(values, columns.prompt_column, PROMPT_COLUMNS)
    names = [*(prompt,), find_column(values, columns.chosen_column, CHOSEN_COLUMNS)]
    names.append(find_column(values, columns.rejected_column, REJECTED_COLUMNS))
    fields = [f for name in names if name is not None for f in chat_rows.field_names(values, name)]
    more = ["system", *chat_rows.TOOLS_COLUMNS]
    if prompt is not None and isinstance(values[prompt], str):
        more += ["history", *chat_rows.MATTER_COLUMNS]
    used = [f for f in fields if not f.endswith((".weight", ".train"))]
    return [*used, *(name for name in more if name in values), *(["text"] if not fields else [])]


def _answer(value: Any, name: str) -> list[Turn]:
    if isinstance(value, str) and chat_turns.written(value) is None:
        return [{"role": "assistant", "content": value}]
    return _messages(value, name)


def _messages(value: Any, name: str) -> list[Turn]:
    found = chat_turns.written(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise ValueError(f"column {name!r}: found {describe(value)}, expected text or messages")
    return [chat_turns.read(name, i, one)[0] for i, one in enumerate(found)]


def _shared(answers: Sequence[list[Turn]]) -> list[Turn]:
    """The turns that both begin with, up to the last of them that is not the assistant's."""
    shared: list[Turn] = []
    for one, other in zip(*answers, strict=False) if len(answers) == 2 else ():
        if one != other:
            break
        shared.append(one)
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    return shared


def _checked(turns: list[Turn], values: Mapping[str, Any], what: str) -> list[Turn]:
    """The turns, behind what a column `system` says."""
    try:
        turns = [*chat_rows.system(values, turns), *turns]
        chat_turns.check_order(turns, answered=False)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if turns[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            f"{what}: found a prompt that ends with the {turns[-1]['role']}, expected the user's turn last"
        )
    return turns
