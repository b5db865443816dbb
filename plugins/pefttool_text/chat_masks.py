"""Which tokens of a conversation are learnt: what the model has to produce behind the prompts that it is asked with.

An answer is found by writing the conversation up to it twice: as the prompt for it, and with it. Where the whole
conversation begins with both, the answer stands between. A template that writes earlier turns in another way than last
ones (thinking that is forgotten, a text at the very end) leaves only the last answer to be learnt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pefttool import DataError
from pefttool_text import ends
from pefttool_text.batching import IGNORE
from pefttool_text.borders import Tokens
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_template import Template
from pefttool_text.chat_turns import Turn

TrainTurns = Literal["auto", "all", "last"]
OPENED = re.compile(r"<think>\s*\Z")
THOUGHT = re.compile(r"\s*(?:<think>)?(.*)</think>", re.DOTALL)


class Masked(NamedTuple):
    """`labels` are IGNORE but for what is learnt; `rewritten` counts answers that the template keeps from being so."""

    ids: list[int]
    labels: list[int]
    rewritten: int


def masked(template: Template, conversation: Conversation, which: TrainTurns = "auto") -> Masked:
    """The tokens of a conversation that ends with an answer. Raises DataError where the template refuses it, leaves
    something out, or writes the answer in another way than the prompt for it says."""
    turns, text = template.whole(conversation.turns)
    last, learnt, begin = len(turns) - 1, conversation.learnt, 0
    if last in learnt:
        text, begin = _last(template, turns, text)
        _require_thought(template, turns, last, text[begin:])
    earlier = [i for i in learnt if i != last] if which != "last" else []
    try:
        tokens = Tokens(template.processor, text)
        found = [_earlier(template, turns, i, text, tokens) for i in earlier]
        rewritten = [i for i, place in zip(earlier, found, strict=True) if place is None]
        if rewritten:
            _require_last(template, rewritten[0], which, last in learnt)
            tokens, found = Tokens(template.processor, text), []
        if last in learnt:
            start, stop = tokens.start(begin), tokens.end(len(text.rstrip())) or len(tokens.ids)
            found.append(_ended(range(start, stop), tokens.ids, template.processor))
    except ValueError as error:
        raise DataError(f"{template.place}: {error}") from error
    labels = [IGNORE] * len(tokens.ids)
    for k in (k for place in found for k in place or ()):
        labels[k] = tokens.ids[k]
    return Masked(tokens.ids, labels, len(earlier) if rewritten else 0)


def _require_last(template: Template, i: int, which: TrainTurns, learnt: bool) -> None:
    """Raise DataError where it does not do to learn the last answer alone, as the template rewrites message i."""
    if which == "all":
        raise DataError(
            f"{template.place}: the model's chat template rewrites earlier turns, so message {i + 1} cannot be learnt"
            " as it will be asked for: use --task chat -o task.train_turns=last, or give one answer a row"
        )
    if not learnt:
        raise DataError(
            f"{template.place}: the model's chat template rewrites earlier turns, and the data has only such to learn:"
            " end the conversation with the answer that is to be learnt"
        )


def _last(template: Template, turns: Sequence[Turn], text: str) -> tuple[str, int]:
    """The text with the last answer as it will be produced, and the character at which that begins."""
    prompt = template.text(turns[:-1], prompt=True)
    if text.startswith(prompt):
        return text, len(prompt)
    opened = OPENED.search(prompt)
    head = prompt[: opened.start()].rstrip() if opened else ""
    if not head or not text.startswith(head):
        shared = next(k for k in range(len(prompt)) if not text.startswith(prompt[: k + 1]))
        raise DataError(
            f"{template.place}: the model's chat template asks for an answer with {_shown(prompt[shared:])}, and writes"
            f" an answer as {_shown(text[shared:])}: it cannot be learnt as it will be asked for"
        )
    # The prompt opens the thinking, which the template forgets once there is an answer: R1 and its kin. What has to be
    # produced is the thought, its end, and the answer; without a thought, its end at once.
    before = prompt if prompt.endswith("\n") else f"{prompt}\n"
    whole = f"{before}{_thought(turns[-1]).strip()}\n</think>\n\n{text[len(head) :].lstrip()}"
    return whole, len(prompt)


def _earlier(template: Template, turns: Sequence[Turn], i: int, text: str, tokens: Tokens) -> Sequence[int] | None:
    """The places of an earlier answer in the tokens, or None where the whole conversation has it in another way."""
    try:
        prompt, answered = template.text(turns[:i], prompt=True), template.text(turns[: i + 1])
    except DataError:
        return None  # it takes only whole conversations
    if not (text.startswith(prompt) and answered.startswith(prompt)):
        return None
    # What is said at the very end of a conversation (EOS) is not said after an earlier turn.
    answered = answered.rstrip()
    while not text.startswith(answered):
        shorter = _without_token(answered, template.processor)
        if shorter is None or len(shorter) <= len(prompt):
            return None
        answered = shorter
    thought = _thought(turns[i]).strip()
    if thought and thought not in text[len(prompt) : len(answered)]:
        return None
    start, stop = tokens.start(len(prompt)), tokens.end(len(answered))
    if stop is None:
        return None
    found, end = _ended(range(start, stop), tokens.ids, template.processor), ends.of(template.processor)
    return found if found and (not end or tokens.ids[found[-1]] in end) else None


def _without_token(text: str, processor: Any) -> str | None:
    """The text without the special token at its end, and without blanks before that; None if there is none."""
    token = max((t for t in processor.get_added_vocab() if text.endswith(t)), key=len, default=None)
    return None if not token else text.removesuffix(token).rstrip()


def _ended(places: range, ids: Sequence[int], processor: Any) -> range:
    """These places up to the first end of a turn behind which only ends and blanks follow: generation stops there.
    Where nothing ends it, up to such blanks."""
    end, said = ends.of(processor), len(places)
    while said and (ids[places[said - 1]] in end or not str(processor.decode([ids[places[said - 1]]])).strip()):
        said -= 1
    return places[: next((k + 1 for k in range(said, len(places)) if ids[places[k]] in end), said)]


def _thought(turn: Turn) -> str:
    """What the assistant thinks before it answers, in a field of its own or at the beginning of its text."""
    found = THOUGHT.match(turn.get("content") or "")
    return str(turn.get("reasoning_content") or (found.group(1) if found else ""))


def _require_thought(template: Template, turns: Sequence[Turn], i: int, answer: str) -> None:
    thought = _thought(turns[i]).strip()
    if thought and thought not in answer:
        raise DataError(
            f"{template.place}: the model's chat template leaves out the reasoning of message {i + 1}, which would be"
            " learnt without it: use a model that takes it, or remove it"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
