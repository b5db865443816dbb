"""Tiny random models of known kinds, made when a case first asks: what people fine-tune, small enough for seconds.

A kind of model is a function in one of the modules here; `MAKERS` of a module names it. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

#: Writes a model's folder: config, safetensors, and its tokenizer or processor.
Maker = Callable[[Path], None]


@cache
def makers() -> dict[str, Maker]:
    """Every maker by the name of its model."""
    found: dict[str, Maker] = {}
    for module in pkgutil.iter_modules(__path__):
        for name, maker in getattr(importlib.import_module(f"{__name__}.{module.name}"), "MAKERS", {}).items():
            assert name not in found, f"two models are called {name!r}"
            found[name] = maker
    return found


@cache
def folder(name: str) -> Path:
    """The folder of the model `name`, made once in a process."""
    import torch

    path = Path(tempfile.mkdtemp(prefix="pefttool-case-")) / name
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        makers()[name](path)
    return path
