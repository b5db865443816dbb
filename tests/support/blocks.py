"""Blocks for the tests of streaming: where they lie, and a lane that knows what is held."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pefttool.files.sectioned_file import TensorSection

BLOCKS = 5


def tensors(block: int) -> dict[str, Tensor]:
    """Odd sizes, three dtypes, and values that say which block they are."""
    return {
        f"{block}.weight": torch.full((7, 3), block, dtype=torch.uint8),
        f"{block}.absmax": torch.full((5 + block,), float(block)),
        f"{block}.values": torch.full((3,), -block, dtype=torch.int8),
    }


SECTIONS = [TensorSection.of(tensors(block)) for block in range(BLOCKS)]


class Lane:
    """Answers with the block's number, and knows what is held."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.most = 0

    def begin(self, block: int) -> None:
        assert block not in self.held
        self.held.append(block)
        self.most = max(self.most, len(self.held))

    def take(self, block: int) -> Mapping[str, Tensor]:
        assert block in self.held
        return {"block": torch.tensor(block)}

    def drop(self, block: int) -> None:
        self.held.remove(block)


class Host:
    def flat(self, block: int) -> Tensor:
        flat = torch.empty(SECTIONS[block].size, dtype=torch.uint8)
        for name, view in SECTIONS[block].views(flat).items():
            view.copy_(tensors(block)[name])
        return flat

    def release(self, block: int) -> None:
        pass
