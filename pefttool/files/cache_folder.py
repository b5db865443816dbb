"""Where pefttool keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "PEFTTOOL_CACHE"


def cache_folder() -> Path:
    """Where pefttool keeps what it can make or fetch again: PEFTTOOL_CACHE, or otherwise the user's cache folder."""
    own = os.environ.get(CACHE)
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "pefttool"
