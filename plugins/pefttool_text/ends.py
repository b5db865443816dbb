"""Tokens at which an answer ends: those that a model's files name, and the one that closes a turn in its template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pefttool import DataError


def note(processor: Any, folder: Path, config: Any) -> None:
    """Let `of` know, by the files of a model, where its answers end."""
    processor.ends_at = frozenset((*_ids(processor), *_ids(config), *_stored(folder), *_closing(processor)))


def of(processor: Any) -> frozenset[int]:
    """The ids at which an answer ends; of a tokenizer that `note` has not seen, its EOS."""
    noted = getattr(processor, "ends_at", None)
    return frozenset(_ids(processor)) if noted is None else noted


def of_model(model: Any, processor: Any) -> list[int]:
    """The ids at which generation stops: the model's own and `of`, in ascending order."""
    configs = (getattr(model, name, None) for name in ("generation_config", "config"))
    return sorted({*of(processor), *(i for config in configs for i in _ids(config))})


def _ids(thing: Any) -> Iterable[int]:
    found = getattr(thing, "eos_token_id", None)
    return [i for i in (found if isinstance(found, list | tuple) else [found]) if isinstance(i, int)]


def _stored(folder: Path) -> list[int]:
    """What generation_config.json says."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]


def _closing(processor: Any) -> list[int]:
    """The special token with which the template closes an answer, where it has one."""
    from pefttool_text.chat_template import ANSWERED, TRIED, Template

    if not getattr(processor, "chat_template", None):
        return []
    try:
        text = Template(processor, datetime.date(2000, 1, 1), "a try").text(TRIED)
    except DataError:
        return []
    behind = text.rpartition(ANSWERED)[2].lstrip()
    known = processor.get_added_vocab()
    token = max((t for t in known if t and behind.startswith(t)), key=len, default=None)
    return [] if token is None else [int(known[token])]
