"""Prefix tuning inside the attention function: every module that attends holds its keys and values itself.

Our attention function, registered with transformers' AttentionInterface, puts them before the module's own. So it works
without a cache (encoders of text, images, speech, series), with a cache that holds none of it, with blocks that compute
their activations again, and with packed rows. Where peft would compute the same, its files are peft's; else these:

    prefix_config.json    num_virtual_tokens; whether the text's positions begin behind the prefix
    prefix.safetensors    MODULE.key, MODULE.value [H_kv, P, D]
    load_prefix.py        makes the model without pefttool, where transformers alone can make its base
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pefttool import Attached, Facts, KeyValues, ModelError, UsageError
from pefttool.nn import attention, attention_modules, attention_prefix, embedding_offload
from pefttool.toolkit import peft_folder
from pefttool.toolkit.model_parts import transformers_part
from pefttool_prefix import as_peft
from pefttool_prefix.loader import LOADER, source

CONFIG, WEIGHTS = "prefix_config.json", "prefix.safetensors"
KINDS = ("key", "value")
#: Keys and values [H_kv, P, D].
Layer = tuple[Tensor, Tensor]


class KeyValuePrefix(nn.Module):
    """Keys and values [H_kv, P, D], float32, of one module that attends."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = nn.Parameter(key), nn.Parameter(value)
        self.enabled = True

    def forward(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.enabled:
            return None
        return self.key.to(like.dtype), self.value.to(like.dtype)


class Shift:
    """A hook that lets the text's positions begin behind the prefix, where a cache would have them begin.

    `task_type` is peft's, where the prefix is saved in its files.
    """

    def __init__(self, count: int, task_type: str | None = None) -> None:
        self.count, self.task_type, self.enabled = count, task_type, True

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not self.enabled:
            return None
        # By name, whatever place it was given in.
        given = inspect.signature(type(module).forward).bind_partial(module, *inputs, **named).arguments
        positions = given.get("position_ids")
        if positions is None:
            embedded = given.get("inputs_embeds")
            tokens = given["input_ids"] if embedded is None else embedded[..., 0]
            cache = given.get("past_key_values")
            past = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(past, past + tokens.shape[1], device=tokens.device).unsqueeze(0)
        return inputs, {**named, "position_ids": positions + self.count}


def attach(model: nn.Module, count: int, start: Sequence[Layer | None] | None, scale: float, facts: Facts) -> Attached:
    """A prefix of `count` positions in every module that attends; it begins as `start`, by their `layer_idx`, or as
    `scale` times normal noise."""
    model.requires_grad_(False)
    noise = _noise(count, scale, facts.key_values, meta=next(model.parameters()).is_meta)
    prefixes = {}
    for known in facts.key_values:
        key, value = next(noise)
        if start is not None:
            index = getattr(model.get_submodule(known.module), "layer_idx", len(start))
            layer = start[index] if index < len(start) else None
            if layer is None:
                message = f"'activations' needs a cache of every layer, and {known.module} has none; use 'random'"
                raise UsageError(f"adapter.init: {message}")
            key, value = (kind.clone() for kind in layer)
        prefixes[known.module] = KeyValuePrefix(key, value)
    shifts = facts.key_value_cache and facts.counts_positions
    task_type = facts.peft_task_type if as_peft.fits(model, facts) else None
    _install(model, prefixes, Shift(count, task_type) if shifts else None)
    held = tuple(f".{attention_prefix.NAME}.{kind}" for kind in ("key", "value"))
    trainable = frozenset(name for name, _ in model.named_parameters() if name.endswith(held))
    return Attached(model, trainable, identity_at_init=False)


def _noise(count: int, scale: float, modules: Sequence[KeyValues], meta: bool) -> Iterator[Layer]:
    """Keys and values [H_kv, count, D] for each of these modules: one draw in peft's order, so that one seed gives the
    same prefix here as there."""
    sizes = [(m.heads, size) for m in modules for size in (m.key_size, m.value_size)]
    width = sum(heads * size for heads, size in sizes)
    drawn = torch.empty(count, width, device="meta" if meta else "cpu").normal_().mul_(scale)
    parts = torch.split(drawn, [heads * size for heads, size in sizes], dim=1)
    shaped = [part.reshape(count, *size).transpose(0, 1).contiguous() for part, size in zip(parts, sizes, strict=True)]
    return zip(shaped[::2], shaped[1::2], strict=True)


def _install(model: nn.Module, prefixes: Mapping[str, KeyValuePrefix], shift: Shift | None) -> None:
    """Give modules, by name, their prefixes, and the model the attention function that looks for them."""
    part = transformers_part(model)
    reason = f"{type(model).__name__} holds no transformers model" if part is None else attention.install(part)
    if reason is not None:
        raise UsageError(f"adapter.implementation: 'attention': {reason}; use 'lora'")
    device = embedding_offload.device_of(model)
    for name, prefix in prefixes.items():
        model.get_submodule(name).add_module(attention_prefix.NAME, prefix.to(device))
    if shift is not None:
        _counting(model).register_forward_pre_hook(shift, with_kwargs=True)


def _counting(model: nn.Module) -> nn.Module:
    """The innermost transformers model that positions can be given to, and a cache."""
    from transformers import PreTrainedModel

    wanted = {"past_key_values", "position_ids"}
    able = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and wanted <= set(inspect.signature(module.forward).parameters)
    ]
    innermost: nn.Module = able[-1]
    return innermost


def _shifts(model: nn.Module) -> dict[str, Shift]:
    """By the name of the module whose positions it shifts: one at most."""
    hooks = ((name, hook) for name, module in model.named_modules() for hook in module._forward_pre_hooks.values())
    return {name: hook for name, hook in hooks if isinstance(hook, Shift)}


def _prefixes(model: nn.Module) -> dict[str, KeyValuePrefix]:
    """By the name of the module that each stands in."""
    return {
        name.removesuffix(f".{attention_prefix.NAME}"): module
        for name, module in model.named_modules()
        if isinstance(module, KeyValuePrefix)
    }


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within, `model` answers as the base."""
    switched: list[KeyValuePrefix | Shift] = [*_prefixes(model).values(), *_shifts(model).values()]
    for part in switched:
        part.enabled = False
    try:
        yield
    finally:
        for part in switched:
            part.enabled = True


def save(model: nn.Module, folder: Path) -> None:
    held, shifts = _prefixes(model), _shifts(model)
    for shift in shifts.values():
        if shift.task_type is not None:
            as_peft.save(model, [(prefix.key, prefix.value) for prefix in held.values()], shift.task_type, folder)
            return
    tensors = {f"{name}.{kind}": getattr(prefix, kind) for name, prefix in held.items() for kind in KINDS}
    folder.mkdir(parents=True, exist_ok=True)
    peft_folder.write_tensors(folder / WEIGHTS, tensors)
    count = next(iter(held.values())).key.shape[1]
    config = {"num_virtual_tokens": count, "positions_begin_behind_it": bool(shifts), "modules": list(held)}
    text = source(model, count, next(iter(shifts), None))
    if text is not None:
        (folder / LOADER).write_text(text, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Raises ModelError if the folder is damaged or does not fit the model."""
    tensors = peft_folder.read_tensors(folder / WEIGHTS)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        count, shifts = int(config["num_virtual_tokens"]), bool(config["positions_begin_behind_it"])
        names = [str(name) for name in config["modules"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be used ({error!r}): restore the adapter folder") from error
    if set(tensors) != {f"{name}.{kind}" for name in names for kind in KINDS}:
        raise ModelError(f"{folder / WEIGHTS} does not hold what {CONFIG} names: copy the whole adapter folder again")
    places = {known.module: known for known in attention_modules.find(model)}
    for name in names:
        known = places.get(name)
        shapes = [] if known is None else [[known.heads, count, size] for size in (known.key_size, known.value_size)]
        if shapes != [list(tensors[f"{name}.{kind}"].shape) for kind in KINDS]:
            raise ModelError(
                f"{folder}: {name!r} has no place of its shape in {type(model).__name__}; load it onto the base that it"
                " was trained on"
            )
    prefixes = {name: KeyValuePrefix(*(tensors[f"{name}.{kind}"].float() for kind in KINDS)) for name in names}
    _install(model, prefixes, Shift(count) if shifts else None)
    model.requires_grad_(False)
    return model.eval()
