"""The options of `--adapter head`."""

from __future__ import annotations

from pydantic import Field

from pefttool import Options


class HeadOptions(Options):
    train_last_layers: int = Field(
        0,
        ge=0,
        description="also train the last so many blocks of the backbone, and what follows them; then only the blocks"
        " before them are frozen",
    )
