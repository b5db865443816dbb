"""An option that is text takes what was typed: `-o task.positive=yes` is the class `yes`, which YAML reads as true."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

NOTHING = type(None)


class Given(dict[str, Any]):
    """A recipe as a document. `typed` has the text of each `-o KEY=TEXT`, by its key."""

    def __init__(self, document: Mapping[str, Any], typed: Mapping[str, str]) -> None:
        super().__init__(document)
        self.typed = dict(typed)


def of(document: Mapping[str, Any]) -> dict[str, str]:
    """What was typed for a document, if it knows."""
    return dict(document.typed) if isinstance(document, Given) else {}


def restore(document: Mapping[str, Any], typed: Mapping[str, str], models: Mapping[str, type[BaseModel]]) -> None:
    """Put the text back, in place, wherever `models` want text; each describes the keys of one section."""
    for key, text in typed.items():
        section, _, name = key.rpartition(".")
        field = models[section].model_fields.get(name) if section in models else None
        at: Any = document
        for part in section.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if field is None or not isinstance(at, dict) or not takes_text(field.annotation):
            continue
        if at.get(name) is not None or takes_text(field.annotation, or_nothing=False):
            read = yaml.load(text, Loader=yaml.BaseLoader)  # which makes text of every value, quotation marks aside
            # `summarize: ` would be a section, and `[x]` a list.
            at[name] = read if isinstance(read, str) or _takes_lists(field.annotation) else text


def takes_text(annotation: Any, or_nothing: bool = True) -> bool:
    """Whether values of this type are text, or lists of texts; `or_nothing`: or None."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not NOTHING]
        return (or_nothing or len(parts) == len(get_args(annotation))) and all(map(takes_text, parts))
    return annotation is str or get_args(annotation) == (str, ...)


def _takes_lists(annotation: Any) -> bool:
    return get_args(annotation) == (str, ...) or any(map(_takes_lists, get_args(annotation)))
