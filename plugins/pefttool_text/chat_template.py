"""A model's own chat template: the text that it makes of a conversation, and that it leaves nothing out of it.

A template may refuse a conversation, write it in pieces, or pass over what it does not know (tools, a role). The first
is told in the template's own words; the last is found out by writing the conversation once more with a mark in each of
its parts, and looking for the marks.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pefttool import DataError, ModelError, Options
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_turns import Turn

#: Text of so many characters stands in a rendered conversation by its own doing, and not by chance.
EVIDENT = 16
#: A conversation that every template is tried with.
ANSWERED = "what is answered there"
TRIED: tuple[Turn, ...] = (
    {"role": "user", "content": "what is asked here"},
    {"role": "assistant", "content": ANSWERED},
)
CLOCK = "strftime_now"
#: The date in a format that the template names; transformers takes it from the clock, and takes no other function.
ASKED = re.compile(CLOCK + r"""\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")


today = datetime.date.today


def _today(given: Any) -> Any:
    return today() if given == "today" else given


class TemplateOptions(Options):
    """What templates may write that no row says."""

    date: Annotated[datetime.date, BeforeValidator(_today)] = Field(
        "today",  # type: ignore[assignment]
        description="the day that a chat template writes as today's, such as 2026-11-30; by default the day on which a"
        " run began, which it keeps when it is resumed, repeated or asked",
    )


def require(processor: Any) -> None:
    """Raise ModelError for a tokenizer without a chat template."""
    if not getattr(processor, "chat_template", None):
        raise ModelError(
            "this model's tokenizer has no chat template: use an instruction-tuned model, or --task"
            " causal-lm on rendered text"
        )
    if f"{CLOCK}(" in ASKED.sub("", str(processor.chat_template)):
        raise ModelError(
            f"this model's chat template calls {CLOCK} with a format that is worked out, so that the date of a run"
            " cannot be kept: write the format into the template"
        )


def require_prompt(processor: Any) -> None:
    """Raise ModelError for a chat template that writes who answers in front of an answer, and never asks with it: the
    model would have to write it, and every answer would begin with it."""
    template = Template(processor, datetime.date(2000, 1, 1), "a try")
    try:
        prompt, answered = template.text(TRIED[:1], prompt=True), template.text(TRIED)
        asks = prompt != template.text(TRIED[:1])
    except DataError:
        return  # rows that it takes will tell
    header = answered.removeprefix(prompt).partition(ANSWERED)[0]
    if asks or not answered.startswith(prompt) or not header.strip():
        return
    wanted = json.dumps(header.rstrip(" "), ensure_ascii=False)
    raise ModelError(
        f"this model's chat template writes {header!r} in front of an answer, but does not end a prompt with it: put"
        f" {{% if add_generation_prompt %}}{{{{ {wanted} }}}}{{% endif %}} at its end"
    )


def tells_time(processor: Any) -> bool:
    """Whether the template asks for the date."""
    return CLOCK in str(getattr(processor, "chat_template", None))


def without_date(options: Any, processor: Any) -> Any:
    """The options as far as conversations depend on them: on the date only where the template asks for it."""
    return options if tells_time(processor) else options.model_copy(update={"date": datetime.date.min})


class Template:
    """The template of a processor for one row: its tools, its place, and the run's date."""

    def __init__(
        self, processor: Any, date: datetime.date, place: str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        require(processor)
        self.processor, self.place, self._tools = processor, place, tools
        # None: the one that the processor chooses.
        self._written = _dated(processor.get_chat_template(tools=tools), date) if tells_time(processor) else None

    def text(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        """The conversation as text; as a `prompt`, up to where the assistant's answer begins. Raises DataError."""
        return self._text(turns, prompt, self._tools)

    def _text(self, turns: Sequence[Turn], prompt: bool, tools: Sequence[Mapping[str, Any]] | None) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.processor.apply_chat_template(
                    list(turns),
                    tools=None if tools is None else list(tools),
                    chat_template=self._written,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self.place}: the model's chat template refuses this conversation: {words!r}; {_way_out(words)}"
            ) from error

    def whole(self, turns: Sequence[Turn], prompt: bool = False) -> tuple[list[Turn], str]:
        """(the turns in the form in which the template takes them, their text). Raises DataError where it refuses them,
        or leaves out a part in whatever form."""
        refused: list[DataError] = []
        lacking: list[DataError] = []
        for form in _forms(turns):
            complaints = refused
            try:
                text, complaints = self.text(form, prompt), lacking
                self._require_all(form, text, prompt)
            except DataError as error:
                complaints.append(error)
            else:
                return form, text
        raise (lacking or refused)[0]

    def _require_all(self, turns: Sequence[Turn], text: str, prompt: bool) -> None:
        """Raise DataError for the first part of the conversation that is not in its text."""
        for i, turn in enumerate(turns):
            for call in turn.get("tool_calls", ()):
                arguments = call["function"]["arguments"]
                if arguments and isinstance(arguments, Mapping) and str(arguments) in text:
                    raise self._left_out(f"JSON for the arguments of message {i + 1}: use a model that calls tools")
        if self._tools is not None and text == self._text(turns, prompt, None):
            raise self._left_out("tools: use a model that calls tools, or remove them")
        marked, marks = _marked(turns, text)
        if not marks:
            return
        try:
            again = self.text(marked, prompt)
        except DataError:
            return  # it reads what a message says (JSON), which a mark spoils
        for mark, what in marks.items():
            if mark not in again:
                raise self._left_out(f"{what}: use a model that takes it, or remove it")

    def _left_out(self, what: str) -> DataError:
        return DataError(f"{self.place}: the model's chat template leaves out {what}")


def written(processor: Any, conversation: Conversation, date: datetime.date, place: str) -> str:
    """The prompt for an answer to this conversation. Raises DataError."""
    return Template(processor, date, place, conversation.tools).whole(conversation.turns, prompt=True)[1]


def _dated(template: str, date: datetime.date) -> str:
    """The template with this date wherever it asks for today's."""
    day = datetime.datetime.combine(date, datetime.time())
    return ASKED.sub(lambda asked: json.dumps(day.strftime(asked["format"]), ensure_ascii=False), template)


def _way_out(words: str) -> str:
    if "system" in words.lower():
        return "put the system message into the first question, or leave such rows out with --skip-bad-rows"
    return "mend the row, or leave it out with --skip-bad-rows"


def _forms(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """The turns as templates want them where tools are called: arguments as objects or as JSON, and beside the call an
    empty text or none at all."""
    yield list(turns)
    if not any(turn.get("tool_calls") for turn in turns):
        return
    for as_text, silent in ((False, True), (True, False), (True, True)):
        form = []
        for turn in turns:
            if turn.get("tool_calls"):
                calls = [_with_text(call) for call in turn["tool_calls"]] if as_text else turn["tool_calls"]
                turn = {**turn, "tool_calls": calls}
                if silent and not turn["content"]:
                    turn["content"] = None
            form.append(turn)
        yield form


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _marked(turns: Sequence[Turn], text: str) -> tuple[list[Turn], dict[str, str]]:
    """The turns with a mark in every part that does not evidently stand in `text`; what each mark is for."""
    marks: dict[str, str] = {}
    marked: list[Turn] = []
    for i, turn in enumerate(turns):
        content = (turn["content"] or "").strip()
        what = f"message {i + 1} (of role {turn['role']!r})"
        changed = dict(turn)
        if content and not (len(content) >= EVIDENT and content in text):
            mark = f"mark{i}of"
            marks[mark] = what if not turn.get("tool_calls") else f"the text beside the tool calls of message {i + 1}"
            changed["content"] = f"{turn['content'].rstrip()} {mark}"
        if turn.get("tool_calls"):
            changed["tool_calls"] = []
            for j, call in enumerate(turn["tool_calls"]):
                mark = f"mark{i}call{j}of"
                marks[mark] = f"the tool calls of message {i + 1}"
                changed["tool_calls"].append({**call, "function": {**call["function"], "name": mark}})
        marked.append(changed)
    return marked, marks
