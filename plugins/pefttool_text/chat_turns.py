"""What a message may hold, under the names of OpenAI, ShareGPT and LlamaFactory; and in which order messages stand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pefttool.toolkit.columns import describe

#: A message as chat templates take it: `role` and `content`, and where it has them `tool_calls`, `tool_call_id`,
#: `name`, `reasoning_content`.
Turn = dict[str, Any]
#: A role that calls a tool by its content alone, as LlamaFactory writes it.
CALL = "function_call"
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    CALL: "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
PASSED_ON = ("name", "tool_call_id")
#: Every field that is made use of.
FIELDS = (
    *("role", "from", "content", "value", "weight", "train"),
    *("tool_calls", "function_call", *PASSED_ON, *REASONING),
)
FOLLOWS = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant", "user")}


def read(column: str, index: int, given: Any) -> tuple[Turn, bool]:
    """(the message, whether the data has it learnt). Raises ValueError("found ..., expected ...")."""
    place = f"column {column!r}, message {index + 1}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{place}: found {describe(given)}, expected an object with role and content")
    role = _first(given, "role", "from")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place}: found role {describe(role)}, expected one of {', '.join(ROLES)}")
    content = _text(_first(given, "content", "value"), place)
    calls = _calls(given, role, content, place)
    if content is None and not calls:
        found = describe(_first(given, "content", "value"))
        raise ValueError(f"{place}: found content {found}, expected text{_or_calls(role)}")
    turn: Turn = {"role": ROLES[role], "content": "" if role == CALL or content is None else content}
    if calls:
        turn["tool_calls"] = calls
    turn.update({name: given[name] for name in PASSED_ON if given.get(name) is not None})
    reasoning = _first(given, *REASONING)
    if reasoning is not None and reasoning != "":
        if not isinstance(reasoning, str) or turn["role"] != "assistant":
            raise ValueError(f"{place}: found reasoning {describe(reasoning)}, expected text, of the assistant's")
        turn["reasoning_content"] = reasoning  # transformers hands it to templates under its other names, too
    return turn, _learnt(given, turn["role"], place)


def check_order(turns: Sequence[Turn], answered: bool) -> None:
    """Raise ValueError where nobody would speak in such an order; with `answered` the assistant is the last."""
    if not turns:
        raise ValueError("found no messages, expected a user's and an assistant's")
    speaking = [t for t in turns if t["role"] != "system"]
    if any(t["role"] == "system" for t in turns[1:]):
        raise ValueError("found a system message after the first turn, expected it first or not at all")
    if not speaking or speaking[0]["role"] != "user":
        raise ValueError("found no user message before the assistant's, expected the user to speak first")
    for before, after in pairwise(t["role"] for t in speaking):
        if before == after != "tool":
            raise ValueError(f"found two {after} messages in a row, expected user and assistant in turn")
        if after not in FOLLOWS[before]:
            raise ValueError(f"found a {after} message after the {before}'s, expected it after a call of the assistant")
    if answered and speaking[-1]["role"] != "assistant":
        raise ValueError(
            f"found a conversation that ends with the {speaking[-1]['role']}, expected the assistant's answer last"
        )


def _or_calls(role: str) -> str:
    return " or tool_calls" if ROLES[role] == "assistant" else ""


def _first(given: Mapping[str, Any], *names: str) -> Any:
    """The first of these that is there: tables fill up what a message lacks with nothing."""
    return next((given[name] for name in names if given.get(name) is not None), None)


def _text(content: Any, place: str) -> str | None:
    """The text of a message, parts of it joined by line breaks; None where it has none."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(f"{place}: found content {describe(content)}, expected text")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) and part.get("type") != "text" else part
            raise ValueError(f"{place}: found a part {describe(kind)}, expected text in parts of type 'text'")
        texts.append(part["text"])
    return "\n".join(texts)


def _learnt(given: Mapping[str, Any], role: str, place: str) -> bool:
    """OpenAI's `weight` and axolotl's `train`; without them the assistant's messages are learnt."""
    learnt = role == "assistant"
    for name in ("weight", "train"):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise ValueError(f"{place}: found {name} {describe(value)}, expected 0 or 1")
        if value and role != "assistant":
            raise ValueError(f"{place}: found {name} {describe(value)}, and only the assistant's messages are learnt")
        learnt = learnt and bool(value)
    return learnt


def _calls(given: Mapping[str, Any], role: str, content: str | None, place: str) -> list[dict[str, Any]]:
    """The tools that a message calls, as OpenAI writes them, their arguments as an object."""
    found, of = given.get("tool_calls"), "tool_calls"
    if role == CALL:
        found, of = content, "a call"
    elif not found and given.get("function_call") is not None:
        found, of = [given["function_call"]], "function_call"
    if isinstance(found, str) and found.strip():
        found = parsed(found)
    found = [found] if isinstance(found, Mapping) else found
    if not found:
        return []
    if ROLES[role] != "assistant":
        raise ValueError(f"{place}: found {of} of the {role}, expected them of the assistant")
    if not isinstance(found, list) or not all(isinstance(call, Mapping) for call in found):
        raise ValueError(f"{place}: found {of} {describe(found)}, expected objects with name and arguments")
    return [_call(call, place) for call in found]


def _call(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    inner = given.get("function", given)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(f"{place}: found a tool call {describe(given)}, expected a function with name and arguments")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed(arguments) if arguments.strip() else {}
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"{place}: found arguments {describe(inner['arguments'])}, expected an object, or it as JSON")
    call = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments or {})}}
    return {"id": given["id"], **call} if given.get("id") is not None else call


def parsed(text: str) -> Any:
    """What a text says as JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def written(text: str) -> list[Any] | None:
    """The messages that a text is as JSON (tables have them so), or None where it is a text."""
    found = parsed(text) if text.lstrip().startswith("[") else None
    return found if isinstance(found, list) and found and is_message(found[0]) else None


def is_message(value: Any) -> bool:
    """Whether this is at first sight a message."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value)
