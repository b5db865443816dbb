"""Gradient checkpointing: a block forgets its activations and computes them again in the backward pass.

transformers' blocks can do so themselves. They replay their dropout and their autocast, so that gradients stay the same
to the bit. A block before which nothing trains has no backward pass: it is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def possible(blocks: Iterable[nn.Module]) -> bool:
    """Whether all these blocks are of the kind that can."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return all(isinstance(block, GradientCheckpointingLayer) for block in blocks)


def install(model: nn.Module, reentrant: bool) -> None:
    """Let the blocks of an adapted `model` recompute, in place, by either of PyTorch's two ways."""
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    trains = False
    for module in model.modules():
        trains = trains or any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, GradientCheckpointingLayer):
            trains = trains or any(p.requires_grad for p in module.parameters())
            if trains:
                block: Any = module
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)
                if reentrant:
                    module.register_forward_pre_hook(_needing_gradients)


def _needing_gradients(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The reentrant way sees no parameters: a block that trains has to be told by its input, the hidden states."""
    import torch

    hidden: Tensor
    hidden, *others = inputs
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return hidden, *others
