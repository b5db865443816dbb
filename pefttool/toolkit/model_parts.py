"""Parts of a model for authors of plugins: the transformers model inside, its last blocks, what trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pefttool.api.facts import Facts
from pefttool.api.values import Problem

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_last_layers", "last_layer_parameters", "names_of", "train_only", "transformers_part"]


KEY = "adapter.train_last_layers"


def transformers_part(model: nn.Module) -> Any:
    """`model` itself, or the transformers model in it (a task may put its own head on a bare backbone)."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return model
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if len(inside) == 1 else None


def names_of(model: nn.Module, *parts: nn.Module | None) -> tuple[str, ...]:
    """Where these modules are in `model`; those that are None are nowhere."""
    wanted = [part for part in parts if part is not None]
    return tuple(name for name, module in model.named_modules() if any(module is part for part in wanted))


def check_last_layers(count: int | None, facts: Facts) -> list[Problem]:
    """What is wrong with training the last `count` blocks of this model."""
    if not count:
        return []
    if not facts.layers:
        return [Problem(KEY, f"{count}: {facts.architecture} has no repeated blocks; remove this option")]
    if count > len(facts.layers):
        return [
            Problem(KEY, f"{count}: {facts.architecture} has {len(facts.layers)} blocks; use 1 to {len(facts.layers)}")
        ]
    if facts.quantizer is not None:
        return [
            Problem(
                KEY,
                f"{count}: blocks quantised with {facts.quantizer!r} cannot be trained; remove --quantize, or this"
                " option",
            )
        ]
    return []


def last_layer_parameters(model: nn.Module, facts: Facts, count: int) -> list[str]:
    """Names of the parameters of the last `count` blocks and of what follows them in the backbone (norm, pooler).

    The output layer and new task heads are left out, and so are blocks of other stacks (a decoder's).
    """
    from torch import nn

    chosen = tuple(f"{name}." for name in facts.layers[-count:]) if count else ()
    # A second stack's embeddings stand behind the first one's blocks, and are no part of them.
    stacks = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Embedding)
    )
    outside = tuple(f"{name}." for name in (*facts.head_modules, *facts.output_modules))
    names: list[str] = []
    for name, _ in model.named_parameters():
        follows = bool(names) and not name.startswith(stacks + outside)
        if follows or (chosen and name.startswith(chosen)):
            names.append(name)
    return list(facts.used(names))


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze everything but the parameters in `names`; those become float32, in place (ties stay tied)."""
    wanted = set(names)
    for name, parameter in model.named_parameters():
        train = name in wanted
        if train:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(train)
