"""`pefttool` without some of its techniques: for the ablation ladder only.

    python benchmarks/rung.py buckets,attention run --adapter lora ...

A recipe cannot switch these off, and need not: they change nothing but speed and memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def _buckets() -> None:
    from pefttool.data import batches

    batches.WINDOW = 1  # rows are sorted within a batch: that is, not at all


def _attention() -> None:
    from pefttool.nn import attention

    attention.WHOLE = 0  # PyTorch's fused kernel, on packed rows one by one


def _tiles() -> None:
    from pefttool.nn import attention

    attention.TILE = attention.WHOLE or attention.TILE


def _loss() -> None:
    from pefttool_text import output_layer

    output_layer.summed_loss = _nothing


def _allocator() -> None:
    from pefttool.setup import allocator

    allocator.keep_freed_memory = _nothing


def _dropout() -> None:
    from pefttool.nn import dropout

    dropout.install = _nothing


def _lora() -> None:
    from pefttool_kernels import lora

    lora.fuse = _nothing


def _four_bit() -> None:
    from pefttool_kernels import modules

    modules.FusedLinear4bit.backend = "bitsandbytes"


def _norms() -> None:
    from pefttool.nn import rms_norm

    rms_norm.install = _nothing


def _nothing(*_: Any, **__: Any) -> None:
    return None


OFF: dict[str, Callable[[], None]] = {
    "buckets": _buckets,
    "attention": _attention,
    "tiles": _tiles,
    "loss": _loss,
    "allocator": _allocator,
    "dropout": _dropout,
    "lora": _lora,
    "norms": _norms,
    "four-bit": _four_bit,
}


def main() -> None:
    for name in sys.argv[1].split(","):
        OFF[name]()
    sys.argv = ["pefttool", *sys.argv[2:]]
    from pefttool.cli import main as pefttool

    pefttool()


if __name__ == "__main__":
    main()
