"""Where the paths of a run lead, from whatever folder somebody calls: its recipe holds them as they were typed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pefttool.models.hub import SOURCE
from pefttool.runs.run_folder import ENVIRONMENT, RECIPE

#: Keys of a recipe that may name a file or folder, each a section's or the recipe's own.
KEYS = (("model",), ("data", "train"), ("data", "eval"))
#: Keys of environment.json: the folder that the command ran in, and the run's own, absolute.
DIRECTORY, FOLDER = "directory", "folder"


def here(folder: Path) -> dict[str, str]:
    """What a run in `folder` has to note down, so that its paths can be followed from elsewhere."""
    return {DIRECTORY: os.getcwd(), FOLDER: str(folder.absolute())}


def followed(document: Mapping[str, Any], recipe: Path) -> dict[str, Any]:
    """The recipe file's `document`, with absolute paths where those in it are relative to another folder than this.

    Only of a run's own recipe: any other is read from where the command runs.
    """
    found = deepcopy(dict(document))
    if recipe.name != RECIPE:
        return found
    for *section, key in KEYS:
        holder = found.get(section[0]) if section else found
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = follow(holder[key], recipe.parent, maybe_elsewhere=key == "model")
    return found


def without(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what names files: the same run may find them elsewhere, and is told by what is in them."""
    found = deepcopy(dict(document))
    for *section, key in KEYS:
        holder = found.get(section[0], {}) if section else found
        if isinstance(holder, dict):
            holder.pop(key, None)
    return found


def follow(typed: str, run: Path, maybe_elsewhere: bool = True) -> str:
    """`typed` as it is where it leads to the same from here; otherwise the absolute path that the run in `run` meant.

    A run's folder that was moved together with what lies around it finds its files there: as far from it as they were.
    What is nowhere stays as typed if it is `maybe_elsewhere`: on the hub.
    """
    noted = _noted(run)
    if noted is None or not typed.strip():
        return typed
    directory, folder = noted
    try:
        original = os.path.normpath(os.path.join(directory, os.path.expanduser(typed)))
        moved = os.path.normpath(os.path.join(run.absolute(), os.path.relpath(original, folder)))
        plain = os.path.abspath(os.path.expanduser(typed))
        there = next((path for path in (moved, original, plain) if os.path.exists(path)), None)
    except ValueError:  # a null character
        return typed
    if there is None:  # complaints name where it should be
        return typed if maybe_elsewhere or SOURCE.fullmatch(typed) else original
    return typed if there == plain else there


def _noted(run: Path) -> tuple[str, str] | None:
    """The folder that the run's command ran in, and the run's own then; None where that is not known."""
    try:
        document = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
        directory, folder = document[DIRECTORY], document[FOLDER]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    both = isinstance(directory, str) and isinstance(folder, str) and os.path.isabs(directory) and os.path.isabs(folder)
    return (directory, folder) if both else None
