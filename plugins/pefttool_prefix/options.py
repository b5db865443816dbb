"""The options of `--adapter prefix`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pefttool import Options


class PrefixOptions(Options):
    num_virtual_tokens: int = Field(10, ge=1, description="trained positions before the text, in every layer")
    init: Literal["auto", "activations", "random"] = Field(
        "auto",
        description="how the prefix starts: `activations`: keys and values that the base computes for vocabulary"
        " tokens; `random`: normal noise; `auto`: `activations` for models that generate, else `random`",
    )
