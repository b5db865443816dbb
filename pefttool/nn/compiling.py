"""torch.compile of what repeats: in every block all but its attention, whose rows change from batch to batch.

Modules are compiled in place, for any batch size and length, so that names, checkpoints and adapters stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def install(blocks: Iterable[nn.Module]) -> None:
    """Have the parts of these blocks compiled when they are first called."""
    for block in blocks:
        for part in block.children():
            attends = any(type(module).__name__.endswith("Attention") for module in part.modules())
            if not attends and any(True for _ in part.parameters()):
                part.compile(dynamic=True)


def eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """Within, what is compiled runs as it is written: hooks of its modules are heard, and nothing is compiled anew."""
    if not compiled:
        return nullcontext()  # the import behind the other costs a second
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
