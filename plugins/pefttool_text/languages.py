"""The languages that multilingual tokenizers (mBART, NLLB, M2M100) write beside a text, and where they write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pefttool import ModelError
from pefttool.toolkit.class_names import listed

#: NLLB's, which has no table of its languages: `eng_Latn`.
CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
#: The tokenizer's attribute, and the option, of the language to read and of the one to write.
SIDES = (("src_lang", "source_lang"), ("tgt_lang", "target_lang"))


def codes(tokenizer: Any) -> Mapping[str, int]:
    """The token of each language that this tokenizer can be told; none where it knows one pair of languages only."""
    if not hasattr(tokenizer, "tgt_lang"):
        return {}
    table = getattr(tokenizer, "lang_code_to_id", None)
    if not table:
        table = {name: i for name, i in tokenizer.get_added_vocab().items() if CODE.fullmatch(name)}
    return {str(name): int(i) for name, i in table.items() if i != tokenizer.unk_token_id}


def code_of(tokenizer: Any, language: str) -> str | None:
    """What the tokenizer calls a language: by this name, or the only code that begins with it (`en` is `en_XX`)."""
    known = codes(tokenizer)
    if language in known:
        return language
    alike = [code for code in known if code.strip("_").partition("_")[0] == language.casefold()]
    return alike[0] if len(alike) == 1 else None


def tell(tokenizer: Any, source: str | None, target: str | None, asked: bool = True) -> None:
    """Have the tokenizer write these languages. Raises ModelError for one that it does not know, and, where it is
    `asked` for targets, if nothing says which language they are in: it would take the source's."""
    known = codes(tokenizer)
    if not known:
        return
    for (attribute, option), language in zip(SIDES, (source, target), strict=True):
        code = None if language is None else code_of(tokenizer, language)
        if language is not None and code is None:
            raise ModelError(
                f"task.{option}: the tokenizer knows no single language {language!r}, but {listed(list(known))}: call"
                " the language so in the data, or name columns and languages with -o task.source_column=... -o"
                " task.target_column=... -o task.source_lang=... -o task.target_lang=..."
            )
        if code is not None:
            setattr(tokenizer, attribute, code)
    if asked and tokenizer.tgt_lang is None:
        raise ModelError(
            f"task.target_lang: the tokenizer writes the language of a text beside it ({listed(list(known))}), and"
            " nothing says which one the targets are in: say -o task.source_lang=... -o task.target_lang=..."
        )


def target_end(ids: Sequence[int], end: int, tokenizer: Any) -> int:
    """How many tokens the tokenizer wrote to end a target: none, `end`, or `end` and the language (mBART)."""
    if list(ids[-1:]) == [end]:
        return 1
    return 2 if list(ids[-2:-1]) == [end] and ids[-1] in codes(tokenizer).values() else 0


def first_token(tokenizer: Any, target: str | None, start: int) -> Mapping[str, int | None]:
    """What `generate` is told of an answer's first token: it is the language's, unless the decoder starts with that
    (mBART: `start`). Nothing where no language was named: the model's own configuration may say it."""
    code = None if target is None else code_of(tokenizer, target)
    if code is None:
        return {}
    token = codes(tokenizer)[code]
    return {"forced_bos_token_id": None if token == start else token}
