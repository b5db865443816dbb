"""Prefix tuning through peft: the trained keys and values go in as `past_key_values`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttool import Attached, Facts, UsageError
from pefttool.toolkit import peft_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


def attach(
    model: nn.Module,
    count: int,
    start: Sequence[tuple[Tensor, Tensor] | None] | None,
    scale: float,
    facts: Facts,
) -> Attached:
    """A prefix of `count` positions; it begins as `start`, layer by layer, or as `scale` times peft's own noise."""
    peft = peft_folder.load_peft()
    model.requires_grad_(False)
    config = peft.PrefixTuningConfig(task_type=facts.peft_task_type, num_virtual_tokens=count, inference_mode=False)
    adapted = peft_folder.wrap(model, config)
    encoder = adapted.prompt_encoder[peft_folder.NAME].float()
    if start is not None:
        encoder.load_prompt_embeddings(flat(start))
    else:
        encoder.embedding.weight.data.mul_(scale)
    prefix = f"prompt_encoder.{peft_folder.NAME}."
    trainable = frozenset(n for n, _ in adapted.named_parameters() if n.startswith(prefix))
    return Attached(adapted, trainable, identity_at_init=False)


def flat(layers: Sequence[tuple[Tensor, Tensor] | None]) -> Tensor:
    """Keys and values [H_kv, P, D] of every layer as peft's prefix encoder has them: [P, layers * 2 * H_kv * D]."""
    import torch

    return torch.cat([kind.transpose(0, 1).flatten(1) for layer in layers for kind in layer or ()], dim=1)


@contextmanager
def disabled(model: Any) -> Iterator[None]:
    """peft's own `disable_adapter` needs `prepare_inputs_for_generation`, which encoders do not have."""
    own = {n: vars(model).get(n) for n in ("forward", "generate")}
    try:
        for method in own:
            if hasattr(model.base_model, method):
                setattr(model, method, getattr(model.base_model, method))
        yield
    finally:
        for method, value in own.items():
            if value is not None:
                setattr(model, method, value)
            elif method in vars(model):
                delattr(model, method)


def require_fitting(model: nn.Module, facts: Facts) -> None:
    """Raise UsageError where peft would compute something else than the model does, or fail in the middle."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UsageError("train.gradient_checkpointing: peft's prefix cannot recompute activations; switch it off")
    if not facts.key_value_cache:
        raise UsageError(
            f"adapter.implementation: 'peft' calls a head of its own instead of {type(model).__name__}'s; use"
            " 'attention', or another adapter"
        )
