"""Where in the tokens of a text its parts begin and end: an answer behind the prompt that it is asked with.

A place among characters is found among tokens by encoding what stands before it: offsets of tokens do not tell it, as
many tokenizers leave blanks out of them. Where a token straddles the border, as ` yes` does behind a prompt that ends
with a blank, nobody who asks with that prompt is answered by it: there the text is encoded in two parts.
"""

from __future__ import annotations

from typing import Any


class Tokens:
    """`ids` of a text, in which places are looked up in ascending order.

    `special`: with what the tokenizer puts before a text (BOS), and without what it puts behind one (EOS).
    """

    def __init__(self, processor: Any, text: str, special: bool = False) -> None:
        self._processor, self._text, self._special = processor, text, special
        self._before: list[int] = []  # the tokens of the parts before the last, which begins at this character
        self._begin = 0
        self.ids = self._encoded(len(text))
        self._whole = self._said()

    def start(self, at: int) -> int:
        """The number of tokens before the character `at`, from which on the text is encoded anew where one straddles
        it. Raises ValueError where that would make another text of it."""
        before = self._encoded(at)
        if self.ids[: len(before)] != before:
            self._before, self._begin = before, at
            self.ids = self._encoded(len(self._text))
            if self._said() != self._whole:
                raise ValueError(
                    f"the prompt ends with {self._text[:at][-20:]!r} and the answer begins with"
                    f" {self._text[at:][:20]!r}, which share a token that this tokenizer cannot divide: let the prompt,"
                    " or the chat template's, end without the blank"
                )
        return len(before)

    def end(self, at: int) -> int | None:
        """The number of tokens before the character `at`, or None where one straddles it."""
        before = self._encoded(at)
        return len(before) if self.ids[: len(before)] == before else None

    def _encoded(self, at: int) -> list[int]:
        """The tokens of the text up to the character `at`, as it is divided."""
        part = self._text[self._begin : at]
        if self._special and not self._begin:
            return opening(self._processor, part)
        return [*self._before, *self._processor(part, add_special_tokens=False)["input_ids"]]

    def _said(self) -> str:
        return str(self._processor.decode(self.ids))


def opening(processor: Any, text: str) -> list[int]:
    """The tokens of a text that goes on: with what the tokenizer puts before it, and no EOS behind it."""
    ids = list(processor(text)["input_ids"])
    own = list(processor(text, add_special_tokens=False)["input_ids"])
    return ids[:-1] if ids[-1:] == [processor.eos_token_id] and own[-1:] != ids[-1:] else ids
