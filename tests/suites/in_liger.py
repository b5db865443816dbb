"""For Liger-Kernel's tests of its fused linear cross-entropy: ours in its place, or PyTorch's own.

Its kernels need a GPU, so that "theirs" is PyTorch's operators here. What we do not compute is skipped, by name.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

PARTS, COUNTS = os.environ["PEFTTOOL_SUITE_PARTS"], os.environ["PEFTTOOL_SUITE_COUNTS"]
#: Options that our loss does not have, with the values that ask for nothing.
ABSENT: dict[str, tuple[Any, ...]] = {
    "ce_weight": (None,),
    "lse_square_scale": (0, 0.0),
    "label_smoothing": (0, 0.0),
    "softcap": (None,),
    "return_z_loss": (False,),
    "use_token_scaling": (False,),
    "return_token_accuracy": (False,),
    "return_predicted_tokens": (False,),
}


def plain(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    return cross_entropy(linear(x, weight, bias).float(), target, ignore_index=ignore_index, reduction=reduction)


def ours(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """Ours in the value and x's gradient. We compute none for the weight, which is frozen: PyTorch's is added."""
    import pefttool_kernels.cross_entropy as chunked
    import pefttool_kernels.sliced_cross_entropy as sliced

    with open(COUNTS, "a", encoding="utf-8") as stream:
        stream.write(f"{PARTS}\n")
    loss = {"chunked": chunked, "sliced": sliced}[PARTS].linear_cross_entropy
    frozen = None if bias is None else bias.detach()
    value = loss(x, weight.detach(), target, frozen, ignore_index, reduction)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return value
    others = plain(x.detach(), weight, target, bias, ignore_index, reduction)
    return value + (others - others.detach())


def called(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    asked = [name for name, nothing in ABSENT.items() if name in options and options[name] not in nothing]
    if options.get("reduction", "mean") == "none":
        asked.append("reduction='none'")
    if asked:
        pytest.skip(f"not computed: {', '.join(asked)}")
    compute = plain if PARTS == "theirs" else ours
    return compute(x, weight, target, bias, options.get("ignore_index", -100), options.get("reduction", "mean"))


def pytest_configure(config: pytest.Config) -> None:
    from liger_kernel.transformers import functional, fused_linear_cross_entropy

    def forward(self: Any, weight: Tensor, x: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        return called(x, weight, target, bias, **vars_of(self))

    def function(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        return called(input, weight, target, bias, **options)

    fused_linear_cross_entropy.LigerFusedLinearCrossEntropyLoss.forward = forward
    functional.liger_fused_linear_cross_entropy = function


def vars_of(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in (*ABSENT, "ignore_index", "reduction")}
