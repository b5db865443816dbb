"""The narrow products of a LoRA update, in float32 whatever the wide ones are in.

A and B are float32 and small; their gradients are sums over every token, and a rank of 16 costs next to nothing
beside the weight. The wide operand is converted a few rows at a time: never a second copy of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

#: What one converted slice of the wide operand may take, by device type.
SLICE_BYTES = {"cpu": 2 << 20}
OTHER_SLICE_BYTES = 64 << 20


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast decided the dtype of an operator's input; inside, it would turn float32 products into narrow ones."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def slice_rows(x: Tensor) -> int:
    """How many rows of x [M, K] are converted at a time."""
    return max(1, SLICE_BYTES.get(x.device.type, OTHER_SLICE_BYTES) // (4 * max(1, x.shape[1])))


def project(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    """scaling * x [M, K] @ right [K, r] -> [M, r], float32."""
    output = x.new_empty((x.shape[0], right.shape[1]), dtype=torch.float32)
    right = right.float()
    step = slice_rows(x)
    for first in range(0, x.shape[0], step):
        torch.mm(x[first : first + step].float(), right, out=output[first : first + step])
    return output.mul_(scaling)


def gather(left: Tensor, x: Tensor) -> Tensor:
    """left [M, r]^T @ x [M, K] -> [r, K], float32; left is float32."""
    output = x.new_zeros((left.shape[1], x.shape[1]), dtype=torch.float32)
    step = slice_rows(x)
    for first in range(0, x.shape[0], step):
        output.addmm_(left[first : first + step].t(), x[first : first + step].float())
    return output
