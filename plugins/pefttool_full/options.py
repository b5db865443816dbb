"""The options of `--adapter full`."""

from __future__ import annotations

from pydantic import Field

from pefttool import Options


class FullOptions(Options):
    train_last_layers: int | None = Field(
        None,
        ge=1,
        description="train only the last so many blocks, what follows them, and the task head; default: everything",
    )
