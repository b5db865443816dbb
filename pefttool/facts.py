"""Facts of a model: which modules are linear, attend, repeat, or are new. Works on real and on abstract models."""

from __future__ import annotations

import inspect as introspection
from typing import TYPE_CHECKING, Any

from pefttool import recompute
from pefttool.values import Facts

if TYPE_CHECKING:
    from torch import nn

    from pefttool.interfaces import Task


def inspect(model: nn.Module, task: Task, **known: Any) -> Facts:
    """Facts of `model` as `task.load` built it; `known` are the fields that the run decides (labels, dtype, ...)."""
    from torch import nn

    modules = dict(model.named_modules())
    heads = task.head_modules(model)
    outputs = _output_modules(model, modules)
    outside = tuple(f"{n}." for n in (*heads, *outputs))

    def in_backbone(name: str) -> bool:
        return not f"{name}.".startswith(outside) if outside else True

    config = getattr(model, "config", None)
    layers = _layers(model, modules)
    return Facts(
        architecture=type(model).__name__,
        model_type=getattr(config, "model_type", ""),
        hidden_size=int(getattr(config, "hidden_size", 0) or 0),
        linear_modules=tuple(n for n, m in modules.items() if isinstance(m, nn.Linear) and in_backbone(n)),
        attention_modules=tuple(
            n for n, m in modules.items() if type(m).__name__.endswith("Attention") and in_backbone(n)
        ),
        layers=layers,
        head_modules=heads,
        output_modules=tuple(n for n in outputs if n not in heads),
        key_value_cache=_takes_cache(model),
        positions=int(getattr(config, "max_position_embeddings", 0) or 0),
        recomputable=bool(layers) and recompute.possible(modules[name] for name in layers),
        task=task.name,
        peft_task_type=task.peft_task_type,
        parameters=sum(p.numel() for p in model.parameters()),
        **known,
    )


def _output_modules(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    get = getattr(model, "get_output_embeddings", None)
    output = get() if get is not None else None
    return tuple(n for n, m in modules.items() if m is output) if output is not None else ()


def _layers(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """The transformer's blocks, first to last: an encoder's, then the decoder's, where the model has both."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        halves = [getattr(model, f"get_{half}", lambda: None)() for half in ("encoder", "decoder")]
        names = [next((n for n, m in modules.items() if m is half), None) for half in halves]
        if all(names):
            return tuple(
                layer
                for name in names
                for layer in _longest({n: m for n, m in modules.items() if n.startswith(f"{name}.")})
            )
    return _longest(modules)


def _longest(modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """The children of the longest list of modules of one class."""
    from torch import nn

    best: tuple[str, ...] = ()
    for name, module in modules.items():
        if (
            isinstance(module, nn.ModuleList)
            and len({type(child) for child in module}) == 1
            and len(module) > len(best)
        ):
            best = tuple(f"{name}.{i}" for i in range(len(module)))
    return best


def _takes_cache(model: nn.Module) -> bool:
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    return "past_key_values" in introspection.signature(backbone.forward).parameters
