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
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_template import Template
from pefttool_text.chat_turns import Turn

TrainTurns = Literal["auto", "all", "last"]
Span = tuple[int, int]
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
    last, learnt = len(turns) - 1, conversation.learnt
    spans: list[Span] = []
    if last in learnt:
        text, span = _last(template, turns, text)
        _require_thought(template, turns, last, text, span)
        spans.append(span)
    encoded = template.processor(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    tokens = [_ended(inside(offsets, span), ids, template.processor) for span in spans]
    earlier = [i for i in learnt if i != last] if which != "last" else []
    found = [_earlier(template, turns, i, text, ids, offsets) for i in earlier]
    rewritten = sum(place is None for place in found)
    if rewritten and which == "all":
        turn = earlier[found.index(None)] + 1
        raise DataError(
            f"{template.place}: the model's chat template rewrites earlier turns, so message {turn} cannot be learnt as"
            " it will be asked for: use --task chat -o task.train_turns=last, or give one answer a row"
        )
    if not rewritten:
        tokens += [place for place in found if place is not None]
    elif not tokens:
        raise DataError(
            f"{template.place}: the model's chat template rewrites earlier turns, and the data has only such to learn:"
            " end the conversation with the answer that is to be learnt"
        )
    labels = [IGNORE] * len(ids)
    for k in (k for place in tokens for k in place):
        labels[k] = ids[k]
    return Masked(ids, labels, len(earlier) if rewritten else 0)


def inside(offsets: Sequence[Span], span: Span) -> list[int]:
    """The tokens that lie within these characters.

    One that straddles the border carries characters of the prompt: it is not the assistant's to learn.
    """
    first, last = span
    return [k for k, (start, end) in enumerate(offsets) if end > start and first <= start and end <= last]


def _last(template: Template, turns: Sequence[Turn], text: str) -> tuple[str, Span]:
    """The text with the last answer as it will be produced, and where it stands."""
    prompt = template.text(turns[:-1], prompt=True)
    if text.startswith(prompt):
        return text, (len(prompt), len(text.rstrip()))
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
    return whole, (len(prompt), len(whole.rstrip()))


def _earlier(
    template: Template, turns: Sequence[Turn], i: int, text: str, ids: Sequence[int], offsets: Sequence[Span]
) -> list[int] | None:
    """The tokens of an earlier answer, or None where the whole conversation has it in another way."""
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
    span = (len(prompt), len(answered))
    thought = _thought(turns[i]).strip()
    if thought and thought not in text[slice(*span)]:
        return None
    tokens, end = _ended(inside(offsets, span), ids, template.processor), ends.of(template.processor)
    return tokens if tokens and (not end or ids[tokens[-1]] in end) else None


def _without_token(text: str, processor: Any) -> str | None:
    """The text without the special token at its end, and without blanks before that; None if there is none."""
    token = max((t for t in processor.get_added_vocab() if text.endswith(t)), key=len, default=None)
    return None if not token else text.removesuffix(token).rstrip()


def _ended(tokens: list[int], ids: Sequence[int], processor: Any) -> list[int]:
    """These tokens up to the first end of a turn behind which only ends and blanks follow: generation stops there."""
    end, said = ends.of(processor), len(tokens)
    while said and (ids[tokens[said - 1]] in end or not str(processor.decode([ids[tokens[said - 1]]])).strip()):
        said -= 1
    return next((tokens[: k + 1] for k in range(said, len(tokens)) if ids[tokens[k]] in end), tokens)


def _thought(turn: Turn) -> str:
    """What the assistant thinks before it answers, in a field of its own or at the beginning of its text."""
    found = THOUGHT.match(turn.get("content") or "")
    return str(turn.get("reasoning_content") or (found.group(1) if found else ""))


def _require_thought(template: Template, turns: Sequence[Turn], i: int, text: str, span: Span) -> None:
    thought = _thought(turns[i]).strip()
    if thought and thought not in text[slice(*span)]:
        raise DataError(
            f"{template.place}: the model's chat template leaves out the reasoning of message {i + 1}, which would be"
            " learnt without it: use a model that takes it, or remove it"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
