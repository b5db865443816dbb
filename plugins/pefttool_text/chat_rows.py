"""The shapes that chat data comes in, recognised by looking: OpenAI, ShareGPT, Alpaca, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pefttool.named_columns import describe, missing_column

Message = dict[str, str]
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
ANSWER_COLUMNS = ("output", "completion", "response", "answer")
PROMPT_COLUMNS = ("instruction", "prompt", "question")
MESSAGES_COLUMNS = ("messages", "conversations", "conversation")


def shape(values: Mapping[str, Any]) -> str | None:
    """`openai`, `sharegpt`, `alpaca`, `prompt`, or None if a row's columns are none of them."""
    for column in MESSAGES_COLUMNS:
        turns = values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            if "role" in turns[0]:
                return "openai"
            if "from" in turns[0]:
                return "sharegpt"
    if "instruction" in values and "output" in values:
        return "alpaca"
    if _first(values, PROMPT_COLUMNS) and _first(values, ANSWER_COLUMNS):
        return "prompt"
    return None


SHAPES = {
    "openai": "OpenAI: column 'messages' of {role, content}",
    "sharegpt": "ShareGPT: column 'conversations' of {from, value}",
    "alpaca": "Alpaca: columns 'instruction', 'input', 'output'",
    "prompt": "columns 'prompt' and 'completion'",
}


def messages(values: Mapping[str, Any], column: str | None = None, answered: bool = True) -> list[Message]:
    """The turns of a row as `{role, content}`. With `answered`, the last turn must be the assistant's.

    `column` is the one that the user named: then no other is looked at. Raises ValueError("found ..., expected ...").
    """
    if column is not None:
        if column not in values:
            raise ValueError(missing_column(values, column, (), "messages_column"))
        if shape({"messages": values[column]}) is None:
            raise ValueError(f"column {column!r}: found {describe(values[column])}, expected a list of messages")
    kind = shape(values) if column is None else "openai"
    if kind in ("openai", "sharegpt"):
        name = column or next(c for c in MESSAGES_COLUMNS if isinstance(values.get(c), list))
        turns = [read_turn(name, i, turn) for i, turn in enumerate(values[name])]
    elif kind is not None or (not answered and _first(values, PROMPT_COLUMNS)):
        turns = _single(values, answered)
    elif (named := _first(values, MESSAGES_COLUMNS)) is not None:
        wanted = "a list of messages, each with role and content (or from and value)"
        raise ValueError(f"column {named!r}: found {describe(values[named])}, expected {wanted}")
    else:
        raise ValueError(
            f"found columns {', '.join(map(repr, values)) or 'none'}, expected {'; or '.join(SHAPES.values())}"
        )
    check_order(turns, answered)
    return turns


def read_turn(column: str, index: int, turn: Any) -> Message:
    place = f"column {column!r}, message {index + 1}"
    if not isinstance(turn, Mapping):
        raise ValueError(f"{place}: found {describe(turn)}, expected an object with role and content")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place}: found role {describe(role)}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{place}: found content {describe(content)}, expected text")
    return {"role": ROLES[role], "content": content}


def _single(values: Mapping[str, Any], answered: bool) -> list[Message]:
    prompt_column = _first(values, PROMPT_COLUMNS) or "prompt"
    prompt, extra = values.get(prompt_column), values.get("input")
    turns: list[Message] = []
    system = values.get("system")
    if isinstance(system, str) and system.strip():
        turns.append({"role": "system", "content": system})
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"column {prompt_column!r}: found {describe(prompt)}, expected text")
    turns.append(
        {"role": "user", "content": f"{prompt}\n\n{extra}" if isinstance(extra, str) and extra.strip() else prompt}
    )
    answer_column = _first(values, ANSWER_COLUMNS)
    answer = values.get(answer_column) if answer_column else None
    if isinstance(answer, str):
        turns.append({"role": "assistant", "content": answer})
    elif answered:
        raise ValueError(f"column {answer_column or 'output'!r}: found {describe(answer)}, expected text")
    return turns


def check_order(turns: Sequence[Message], answered: bool) -> None:
    if not turns:
        raise ValueError("found no messages, expected a user's and an assistant's")
    speaking = [t for t in turns if t["role"] != "system"]
    if any(t["role"] == "system" for t in turns[1:]):
        raise ValueError("found a system message after the first turn, expected it first or not at all")
    if not speaking or speaking[0]["role"] != "user":
        raise ValueError("found no user message before the assistant's, expected the user to speak first")
    for before, after in pairwise(speaking):
        if before["role"] == after["role"]:
            raise ValueError(f"found two {after['role']} messages in a row, expected user and assistant in turn")
    if answered:
        if speaking[-1]["role"] != "assistant":
            raise ValueError("found a conversation that ends with the user, expected the assistant's answer last")
        if not any(t["content"].strip() for t in speaking if t["role"] == "assistant"):
            raise ValueError("found only empty assistant messages, expected text to learn from")


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((n for n in names if n in values), None)
