"""The shapes that chat data comes in, recognised by looking: OpenAI, ShareGPT, Alpaca, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool.toolkit.columns import describe, missing_column
from pefttool_text import chat_turns
from pefttool_text.chat_turns import Turn

ANSWER_COLUMNS = ("output", "completion", "response", "answer")
PROMPT_COLUMNS = ("instruction", "prompt", "question")
MESSAGES_COLUMNS = ("messages", "conversations", "conversation")
#: What an instruction is about: it stands below it in the user's message.
MATTER_COLUMNS = ("input", "context")
#: KTO's files say with these whether an answer is wanted.
RATING_COLUMNS = ("label", "kto_tag")
TOOLS_COLUMNS = ("tools", "functions")
FILLED_UP = "tables and `datasets` fill up what a row lacks"
EXPECTED = (
    "OpenAI: column 'messages' of {role, content}",
    "ShareGPT: column 'conversations' of {from, value}",
    "Alpaca: columns 'instruction', 'input', 'output'",
    "columns 'prompt' and 'completion'",
)


@dataclass(frozen=True)
class Conversation:
    """`learnt` are the places in `turns` of what the assistant is to learn, where the model's template allows."""

    turns: list[Turn]
    learnt: tuple[int, ...] = ()
    tools: list[Mapping[str, Any]] | None = None

    @property
    def context(self) -> int:
        """How many of the assistant's messages the data leaves out of what is learnt."""
        return sum(turn["role"] == "assistant" for turn in self.turns) - len(self.learnt)

    @property
    def question(self) -> Conversation:
        """The conversation up to its last answer."""
        turns = self.turns[:-1] if self.turns[-1]["role"] == "assistant" else self.turns
        return Conversation(turns, tools=self.tools)


def shape(values: Mapping[str, Any]) -> str | None:
    """`openai`, `sharegpt`, `alpaca`, `prompt`, or None if a row's columns are none of them."""
    name = _messages_column(values)
    if name is not None:
        first = (_listed(values[name]) or ({},))[0]
        return "openai" if "role" in first else "sharegpt"
    if "instruction" in values and "output" in values:
        return "alpaca"
    if _first(values, PROMPT_COLUMNS) and _first(values, ANSWER_COLUMNS):
        return "prompt"
    return None


def described(values: Mapping[str, Any]) -> str | None:
    """The shape of a row in words, with the columns that it has."""
    kind = shape(values)
    if kind in ("openai", "sharegpt"):
        name, fields = _messages_column(values), "role, content" if kind == "openai" else "from, value"
        return f"{'OpenAI' if kind == 'openai' else 'ShareGPT'}: column {name!r} of {{{fields}}}"
    if kind is None:
        return None
    names = (_first(values, PROMPT_COLUMNS), *_present(values, MATTER_COLUMNS), _first(values, ANSWER_COLUMNS))
    columns = f"columns {', '.join(map(repr, names))}"
    return f"Alpaca: {columns}" if kind == "alpaca" else columns


def find(values: Mapping[str, Any], column: str | None = None, answered: bool = True) -> Conversation:
    """The conversation of a row. With `answered`, the last turn must be the assistant's, and one must be learnt.

    `column` is the one that the user named: then no other is looked at for messages. Raises ValueError("found ...,
    expected ...").
    """
    if column is not None:
        if column not in values:
            raise ValueError(missing_column(values, column, (), "messages_column"))
        if shape({"messages": values[column]}) is None:
            raise ValueError(f"column {column!r}: found {describe(values[column])}, expected a list of messages")
    kind = shape(values) if column is None else "openai"
    if kind in ("openai", "sharegpt"):
        name = column or _messages_column(values)
        assert name is not None
        read = [chat_turns.read(name, i, turn) for i, turn in enumerate(_listed(values[name]) or ())]
        read = [*[(turn, False) for turn in system(values, [turn for turn, _ in read])], *read]
    elif kind is not None or (not answered and _first(values, PROMPT_COLUMNS)):
        read = _single(values, answered)
    elif (named := _first(values, MESSAGES_COLUMNS)) is not None:
        wanted = "a list of messages, each with role and content (or from and value)"
        raise ValueError(f"column {named!r}: found {describe(values[named])}, expected {wanted}")
    else:
        raise ValueError(f"found columns {', '.join(map(repr, values)) or 'none'}, expected {'; or '.join(EXPECTED)}")
    turns, learnt = [turn for turn, _ in read], tuple(i for i, (_, learnt) in enumerate(read) if learnt)
    chat_turns.check_order(turns, answered)
    if answered:
        _require_wanted(values)
        _require_something(turns, learnt)
    offered = tools(values)
    _require_own_arguments(turns, offered or ())
    return Conversation(turns, learnt, offered)


def key(conversation: Conversation) -> str:
    """What is the same of conversations that are, but for blanks."""
    lines = [f"{turn['role']}: {' '.join(turn['content'].split())}" for turn in conversation.turns]
    more = [turn[name] for turn in conversation.turns for name in ("tool_calls", "reasoning_content") if turn.get(name)]
    return "\n".join([*lines, *([repr((more, conversation.tools))] if more or conversation.tools else [])])


def reads(values: Mapping[str, Any], column: str | None = None) -> list[str]:
    """What of a row `find` makes use of: columns, and fields of messages as `messages[].role`."""
    name = column or _messages_column(values)
    if name is not None:
        fields = field_names(values, name)
    elif shape(values) is None and "text" in values:
        return ["text"]
    else:
        single = (_first(values, PROMPT_COLUMNS), _first(values, ANSWER_COLUMNS), "history")
        fields = [*(n for n in single if n is not None and n in values), *_present(values, MATTER_COLUMNS)]
    rated = [name for name in RATING_COLUMNS if _rating(values.get(name)) is not None]
    return [*fields, *rated, *_present(values, ("system", *TOOLS_COLUMNS))]


def field_names(values: Mapping[str, Any], column: str) -> list[str]:
    """`column[].field` of every field of a message that is made use of; the column alone where it is a text."""
    if not isinstance(values.get(column), list):
        return [column]
    return [f"{column}[].{field}" for field in chat_turns.FIELDS]


def system(values: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turn that a column `system` stands for, beside these: none or one. Raises ValueError."""
    given = values.get("system")
    if given is None or (isinstance(given, str) and not given.strip()):
        return []
    if not isinstance(given, str):
        raise ValueError(f"column 'system': found {describe(given)}, expected text")
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"] != given:
            raise ValueError("column 'system': found another text than the system message's, expected one of them")
        return []
    return [{"role": "system", "content": given}]


def tools(values: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The tools that a row offers, as OpenAI describes them. Raises ValueError."""
    name = next((n for n in TOOLS_COLUMNS if values.get(n)), None)
    if name is None:
        return None
    given = values[name]
    found = chat_turns.parsed(given) if isinstance(given, str) else given
    found = [found] if isinstance(found, Mapping) else found
    if found == []:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise ValueError(f"column {name!r}: found {describe(given)}, expected a list of tools, or it as JSON")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]
    for tool in wrapped:
        if not isinstance(tool["function"], Mapping) or not isinstance(tool["function"].get("name"), str):
            raise ValueError(f"column {name!r}: found a tool {describe(tool)}, expected a function with a name")
        for parameter, schema in _parameters(tool).items():
            if schema is None:
                raise ValueError(
                    f"column {name!r}: found null for parameter {parameter!r} of {tool['function']['name']!r}"
                    f" ({FILLED_UP}); expected its schema: leave out what is null, or give tools as JSON text"
                )
    return wrapped


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of each parameter of a tool, as far as it has them."""
    found: Any = tool["function"].get("parameters")
    found = found.get("properties") if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _require_own_arguments(turns: list[Turn], offered: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for an argument that is null and that its tool does not have."""
    tools = {tool["function"]["name"]: tool for tool in offered}
    for i, turn in enumerate(turns):
        for call in (call["function"] for call in turn.get("tool_calls", ()) if call["function"]["name"] in tools):
            for argument, value in call["arguments"].items():
                if value is None and argument not in _parameters(tools[call["name"]]):
                    raise ValueError(
                        f"message {i + 1}: found null for {argument!r}, which {call['name']!r} does not take"
                        f" ({FILLED_UP}); expected its own arguments: leave out what is null, or give them as JSON text"
                    )


def question(values: Mapping[str, Any], prompt_column: str) -> Turn:
    """The user's message: the prompt, and below it what it is about. Raises ValueError."""
    prompt = values.get(prompt_column)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"column {prompt_column!r}: found {describe(prompt)}, expected text")
    texts = [prompt]
    for name in _present(values, MATTER_COLUMNS):
        if values[name] is not None and not isinstance(values[name], str):
            raise ValueError(f"column {name!r}: found {describe(values[name])}, expected text")
        texts += [values[name]] if values[name] and values[name].strip() else []
    return {"role": "user", "content": "\n\n".join(texts)}


def earlier(values: Mapping[str, Any]) -> list[Turn]:
    """The turns of LlamaFactory's column `history`: questions and answers, which it has learnt. Raises ValueError."""
    given = values.get("history")
    found = chat_turns.parsed(given) if isinstance(given, str) and given.strip() else given
    turns: list[Turn] = []
    for pair in found or ():
        if not isinstance(found, list) or not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"column 'history': found {describe(given)}, expected a list of [question, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"column 'history': found {describe(text)}, expected text")
            turns.append({"role": role, "content": text})
    return turns


def _single(values: Mapping[str, Any], answered: bool) -> list[tuple[Turn, bool]]:
    asked = question(values, _first(values, PROMPT_COLUMNS) or "prompt")
    turns = [*system(values, []), *earlier(values), asked]
    answer_column = _first(values, ANSWER_COLUMNS)
    answer = values.get(answer_column) if answer_column else None
    if isinstance(answer, str):
        turns.append({"role": "assistant", "content": answer})
    elif answered:
        raise ValueError(f"column {answer_column or 'output'!r}: found {describe(answer)}, expected text")
    return [(turn, turn["role"] == "assistant") for turn in turns]


def _require_something(turns: list[Turn], learnt: tuple[int, ...]) -> None:
    if not learnt:
        raise ValueError("found no message to learn: each of the assistant's has weight 0 or train false; expected one")
    if not any(turns[i]["content"].strip() or turns[i].get("tool_calls") for i in learnt):
        raise ValueError("found only empty assistant messages, expected text to learn from")


def _require_wanted(values: Mapping[str, Any]) -> None:
    """Raise ValueError where the row says that its answer is not to be learnt, as half of those for KTO do."""
    name = next((name for name in RATING_COLUMNS if _rating(values.get(name)) is False), None)
    if name is not None:
        raise ValueError(
            f"column {name!r}: found {describe(values[name])}, an answer that is not wanted (KTO's format); expected"
            " answers to learn: if it means something else, drop the column"
        )


def _rating(value: Any) -> bool | None:
    """What a table or JSON says with true and false; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _messages_column(values: Mapping[str, Any]) -> str | None:
    """The column with a list of what at first sight are messages."""
    for name in MESSAGES_COLUMNS:
        first = (_listed(values.get(name)) or (None,))[0]
        if chat_turns.is_message(first):
            return name
    return None


def _listed(value: Any) -> list[Any] | None:
    """A list of messages, which may be written as JSON (tables have it so)."""
    return chat_turns.written(value) if isinstance(value, str) else value if isinstance(value, list) else None


def _present(values: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in values]


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((n for n in names if n in values), None)
