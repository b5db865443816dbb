"""Facts of a model: which modules are linear, attend, repeat, or are new. Works on real and on abstract models."""

from __future__ import annotations

import inspect as introspection
from typing import TYPE_CHECKING, Any

from pefttool.api.facts import Facts
from pefttool.nn import attention_modules, gradient_checkpointing, parameters

if TYPE_CHECKING:
    from torch import nn

    from pefttool.api.task import Task


def inspect(model: nn.Module, task: Task, **known: Any) -> Facts:
    """Facts of `model` as `task.load` built it; `known` are the fields that the run decides (labels, dtype, ...)."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    heads = task.head_modules(model)
    outputs = _output_modules(model, modules)
    outside = tuple(f"{n}." for n in (*heads, *outputs))

    def in_backbone(name: str) -> bool:
        return not f"{name}.".startswith(outside) if outside else True

    config = getattr(model, "config", None)
    layers = _layers(model, modules)
    linear = tuple(n for n, m in modules.items() if parameters.is_linear(m) and in_backbone(n))
    transposed = tuple(n for n, m in modules.items() if isinstance(m, Conv1D) and in_backbone(n))
    kinds = parameters.kinds(model, (*linear, *transposed), outputs)
    return Facts(
        architecture=type(model).__name__,
        model_type=getattr(config, "model_type", ""),
        hidden_size=int(getattr(config, "hidden_size", 0) or 0),
        linear_modules=linear,
        expert_tensors=tuple(n for n, kind in kinds.items() if kind == parameters.EXPERTS and in_backbone(n)),
        weights=parameters.count(model, kinds),
        transposed_modules=transposed,
        attention_modules=tuple(n for n, m in modules.items() if _attends(m) and in_backbone(n)),
        layers=layers,
        head_modules=heads,
        output_modules=tuple(n for n in outputs if n not in heads),
        unused=task.unused(model),
        left_alone=task.left_alone(model),
        key_values=tuple(found for found in attention_modules.find(model) if in_backbone(found.module)),
        key_value_cache=_takes_cache(model, task.peft_task_type),
        counts_positions=_counts_positions(model),
        positions=_positions(model, config),
        recomputable=bool(layers) and gradient_checkpointing.possible(modules[name] for name in layers),
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
    """The children of the longest list of modules of one class; of those with attention in them, if there are such."""
    from torch import nn

    lists = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
    }
    attending = {n: m for n, m in lists.items() if any(_attends(part) for part in m[0].modules() if part is not m[0])}
    name, best = max((attending or lists).items(), key=lambda pair: len(pair[1]), default=("", ()))
    return tuple(f"{name}.{i}" for i in range(len(best)))


def _attends(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") or attention_modules.attends(module)


#: What peft calls itself instead of the model's own forward, where that takes no `past_key_values`.
_HEADS = {"SEQ_CLS": {"dropout", "classifier"}, "TOKEN_CLS": {"dropout", "classifier"}, "QUESTION_ANS": {"qa_outputs"}}


def _takes_cache(model: nn.Module, peft_task_type: str | None) -> bool:
    """Whether peft's prefix tuning computes what the model does: its keys and values go in as `past_key_values`."""
    if _takes(model, "past_key_values"):
        return True
    backbone = _backbone(model)
    if not _takes(backbone, "past_key_values"):
        return False
    if peft_task_type == "SEQ_CLS" and getattr(backbone, "pooler", None) is None:
        return False
    beside = {name for name, child in model.named_children() if child is not backbone}
    return beside <= _HEADS.get(peft_task_type or "", set())


def _counts_positions(model: nn.Module) -> bool:
    """Positions can be given, and are counted from 0 otherwise (RoBERTa's begin behind that of its padding)."""
    return _takes(_backbone(model), "position_ids") and _first_position(model) == 0


def _first_position(model: nn.Module) -> int:
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = [table.padding_idx for table in tables if isinstance(getattr(table, "padding_idx", None), int)]
    return 1 + max(padding, default=-1)


def _positions(model: nn.Module, config: Any) -> int:
    """How many tokens have a position: of what is written, for a model that listens."""
    for name in ("max_position_embeddings", "max_target_positions"):
        longest = getattr(config, name, None)
        if isinstance(longest, int) and longest > 0:
            return longest - _first_position(model)
    return 0


def _backbone(model: nn.Module) -> nn.Module:
    backbone: nn.Module = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    return backbone


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in introspection.signature(module.forward).parameters
