"""The shapes that pairs of a source and a target text come in: translations, summaries, plain pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pefttool.toolkit.columns import describe

#: Usual names of the source's column, and those of the target's beside it.
USUAL: Mapping[str, tuple[str, ...]] = {
    "source": ("target",),
    "src": ("tgt",),
    "source_text": ("target_text",),
    "text": ("summary", "translation", "target"),
    "document": ("summary",),
    "article": ("highlights", "summary"),
    "dialogue": ("summary",),
}
#: What `pefttool predict --text` and `pefttool chat` call a text, whatever the data's columns are called.
TYPED = "text"
#: Several languages in one column, as most translation data sets have it: {"en": ..., "es": ...}.
TRANSLATION = "translation"


class PairOptions(Protocol):
    @property
    def source_column(self) -> str | None: ...
    @property
    def target_column(self) -> str | None: ...
    @property
    def source_lang(self) -> str | None: ...
    @property
    def target_lang(self) -> str | None: ...


class Pair(NamedTuple):
    """The texts as they are found, what an error calls them, and where in the row they stand (`translation.en`).

    `target` is None where there is none.
    """

    source: Any
    target: Any
    source_name: str
    target_name: str
    source_path: str
    target_path: str


def find(values: Mapping[str, Any], options: PairOptions, answered: bool = True) -> Pair:
    """The pair of a row. Raises ValueError("found ..., expected ...") where its columns have no known names."""
    languages = values.get(TRANSLATION)
    if isinstance(languages, Mapping) and options.source_column is None:
        return _of_languages(languages, options, f"column {TRANSLATION!r}, language ", answered, f"{TRANSLATION}.")
    if options.source_lang is not None and options.source_lang in values and options.source_column is None:
        return _of_languages(values, options, "column ", answered)
    source = options.source_column or next((name for name in USUAL if name in values), None)
    if not answered and source not in values and list(values) == [TYPED]:
        source = TYPED
    usual = USUAL.get(source or "", ("target",))
    target = options.target_column or next((name for name in usual if name in values), None)
    if source is None or source not in values:
        raise ValueError(_missing(values, source, "source_column", " and ".join(("'source'", "'target'"))))
    if answered and (target is None or target not in values):
        raise ValueError(_missing(values, target, "target_column", f"{source!r} and {' or '.join(map(repr, usual))}"))
    beside = target or usual[0]
    return Pair(values[source], values.get(target or ""), f"column {source!r}", f"column {beside!r}", source, beside)


def languages(values: Mapping[str, Any], options: PairOptions) -> tuple[str, str] | None:
    """(source, target) of a row with a column of languages, or None where it has none, or they cannot be told."""
    texts = values.get(TRANSLATION)
    if not isinstance(texts, Mapping) or options.source_column is not None:
        return None
    source, target = _two_of([str(name) for name in texts], options)
    return None if source is None or target is None else (source, target)


def reads(values: Mapping[str, Any], options: PairOptions) -> list[str]:
    """What of a row that `complaint` had nothing to say of is its pair."""
    pair = find(values, options, answered=False)
    return [pair.source_path, pair.target_path]


def _two_of(names: Sequence[str], options: PairOptions) -> tuple[str | None, str | None]:
    """(source, target): of two languages without options the first is the source."""
    source, target = options.source_lang, options.target_lang
    if source is None and len(names) == 2:
        source = next(name for name in names if name != target) if target in names else names[0]
    if target is None and len(names) == 2 and source in names:
        target = next(name for name in names if name != source)
    return source, target


def _of_languages(texts: Mapping[str, Any], options: PairOptions, what: str, answered: bool, inside: str = "") -> Pair:
    """A pair by language."""
    found = [str(name) for name in texts]
    source, target = _two_of(found, options)
    for name, option, needed in ((source, "source_lang", True), (target, "target_lang", answered)):
        if needed and name is None:
            raise ValueError(
                f"{what.partition(',')[0]}: found languages {', '.join(map(repr, found)) or 'none'}, expected two, or"
                f" -o task.{option}=LANGUAGE"
            )
        if needed and name not in texts:
            raise ValueError(
                f"{what}{name!r}: found {', '.join(map(repr, found)) or 'none'} only, expected text in {name!r} (name"
                f" another with -o task.{option}=LANGUAGE)"
            )
    names = (f"{what}{source!r}", f"{what}{target!r}")
    return Pair(texts[source or ""], texts.get(target or ""), *names, f"{inside}{source}", f"{inside}{target}")


def _missing(values: Mapping[str, Any], given: str | None, option: str, expected: str) -> str:
    expected = repr(given) if given is not None else f"{expected}; or {TRANSLATION!r} by language"
    return (
        f"found columns {', '.join(map(repr, values)) or 'none'}, expected {expected} (name yours with -o"
        f" task.{option}=COLUMN)"
    )


def complaint(values: Mapping[str, Any], options: PairOptions, answered: bool) -> str | None:
    """What is wrong with a row in one line, or None."""
    try:
        pair = find(values, options, answered)
    except ValueError as error:
        return str(error)
    texts = [(pair.source, pair.source_name), *([(pair.target, pair.target_name)] if answered else [])]
    for text, name in texts:
        if not isinstance(text, str) or not text.strip():
            return f"{name}: found {describe(text)}, expected text"
    return None


def recognise(values: Mapping[str, Any]) -> str | None:
    """Why this row looks like a pair of texts, or None."""
    languages = values.get(TRANSLATION)
    if isinstance(languages, Mapping):
        names = list(languages)
        if len(names) >= 2 and all(isinstance(n, str) and isinstance(languages[n], str) for n in names):
            return f"column {TRANSLATION!r}, {names[0]!r} to {names[1]!r}" if len(names) == 2 else f"{TRANSLATION!r}"
        return None
    for source, targets in USUAL.items():
        target = next((name for name in targets if name in values), None)
        if target is not None and isinstance(values.get(source), str) and isinstance(values[target], str):
            return f"columns {source!r} (source) and {target!r} (target)"
    return None
