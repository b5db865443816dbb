"""PEFT's folder layout: adapter_config.json and adapter_model.safetensors, with the task head folded in.

    lora, prefix   adapter_config.json  adapter_model.safetensors     `peft.PeftModel.from_pretrained` reads them
    anything else  head.safetensors                                   plain transformers names

peft wraps a model (`base_model.model.` + the plain name), a layer (`.base_layer`) and a module that trains as a whole
(`.modules_to_save.NAME`, beside the untouched `.original_module`). The functions here translate.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.files import durable
from pefttool.files.safetensors_file import Reader
from pefttool.nn.tensors import passing_buffers
from pefttool.toolkit import peft_targets
from pefttool.toolkit.quiet import quiet_imports

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "CONFIG",
    "HEAD",
    "NAME",
    "WEIGHTS",
    "load",
    "load_peft",
    "read_tensors",
    "save",
    "stored_dtypes",
    "wrap",
    "write_tensors",
]

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
#: Keys by which an adapter_config.json names modules that peft imports.
IMPORTING = ("megatron_config",)
#: What peft calls an adapter that is given no name: a part of the names of its parameters.
NAME = "default"
TUNER_ROOT, PROMPT_ROOT = "base_model.model.", "base_model."


def load_peft() -> Any:
    """The `peft` module, imported without the chatter of what it imports."""
    with quiet_imports():
        import peft
    return peft


def wrap(model: nn.Module, config: Any) -> Any:
    """`peft.get_peft_model`, without its warnings about what it reads, sets and has renamed itself.

    Names of layers are the model's own (see peft_targets.py).
    """
    peft = load_peft()
    with warnings.catch_warnings(), peft_targets.as_named(model, config):
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*`base_model_name_or_path` was renamed.*", category=UserWarning)
        # Of a model with layers of both kinds (Conv1D and Linear) peft corrects it layer by layer.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to .*", category=UserWarning)
        return peft.get_peft_model(model, config, adapter_name=NAME)


def root(model: nn.Module) -> str:
    """What peft put before the plain names of `model`'s parameters: nothing, `base_model.` or `base_model.model.`"""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not hasattr(model, "get_base_model"):
        return ""
    prompts = any(config.is_prompt_learning for config in configs.values())
    return PROMPT_ROOT if prompts else TUNER_ROOT


def plain_name(name: str, prefix: str = TUNER_ROOT) -> str | None:
    """The transformers name of a wrapped parameter; None for LoRA's own and for untouched copies.

    `prefix` is `root(model)`: prompt methods wrap once, the others twice, which a name alone cannot tell.
    """
    if not name.startswith(prefix):
        return None
    name = name.removeprefix(prefix).replace(".base_layer.", ".")
    if ".original_module." in name or re.search(r"\.lora_\w+(\.|$)", name):
        return None
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


def head_parameters(model: nn.Module, head_modules: Iterable[str]) -> dict[str, nn.Parameter]:
    """The live parameters of the task heads by plain name, whatever wrapper is around the model or the head."""
    prefix = root(model)
    inside = tuple(f"{module}." for module in head_modules)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        plain = plain_name(name, prefix)
        if inside and plain is not None and plain.startswith(inside):
            found[plain] = parameter
    return found


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """The live buffers of a model that a file of it holds, by plain name; an adapter's own are not among them."""
    prefix, passing = root(model), passing_buffers(model)
    named = ((plain_name(name, prefix), buffer) for name, buffer in model.named_buffers() if name not in passing)
    return {plain: buffer for plain, buffer in named if plain is not None}


def head_buffers(model: nn.Module, head_modules: Iterable[str]) -> dict[str, Tensor]:
    """Those of the task heads, such as the running statistics of a batch norm."""
    inside = tuple(f"{module}." for module in head_modules)
    return {name: buffer for name, buffer in buffers(model).items() if inside and name.startswith(inside)}


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapter of a peft model as PEFT does (minus its model card), in a fixed order of keys."""
    from peft.utils import get_peft_model_state_dict

    # save_embedding_layers="auto" would look the base model up on the hub.
    tensors = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    config = copy.copy(getattr(model, "peft_config")[NAME])  # noqa: B009
    config.inference_mode = True
    peft_targets.for_plain_peft(config, model)
    if isinstance(getattr(config, "target_modules", None), set):
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)


def load(model: nn.Module, folder: Path, task_wrapper: bool = False, method: str | None = None) -> nn.Module:
    """Put the adapter that `save` wrote onto the plain base `model`, frozen; return the wrapped model.

    With `task_wrapper` peft's class for the stored task type wraps the model (prompt methods need it); without, the
    head stays a plain module. `method` is the only `peft_type` that is taken (None: any; some of peft's fetch further
    adapters). Raises ModelError if the folder is damaged or does not fit the model.
    """
    peft = load_peft()
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    found = read_config(folder)["peft_type"]
    if method is not None and found != method:
        raise ModelError(f"{folder / CONFIG}: peft_type {found!r} is not {method!r}: restore the adapter folder")
    tensors = read_tensors(folder / WEIGHTS)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        task_type, config.modules_to_save, config.inference_mode = config.task_type, None, True
        if not task_wrapper:
            config.task_type = None
        peft_targets.from_saved(config, model)
        adapted = wrap(model, config)
        config.task_type = task_type
        expected = set(get_peft_model_state_dict(adapted, adapter_name=NAME, save_embedding_layers=False))
        missing = sorted(expected - set(tensors))
        if missing:
            raise ModelError(f"{folder / WEIGHTS} lacks {missing[0]!r}: copy the whole adapter folder again")
        result = set_peft_model_state_dict(adapted, tensors, adapter_name=NAME)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder} does not fit this base model: {' '.join(str(error).split())[:300]}; load it onto the base that"
            f" its {CONFIG} names"
        ) from error
    unknown = sorted(set(result.unexpected_keys) - {"prompt_embeddings"})
    if unknown:
        found = f"{folder / WEIGHTS} holds {unknown[0]!r}"
        raise ModelError(f"{found}, which this base model has no place for: restore the adapter folder")
    adapted.requires_grad_(False)
    loaded: nn.Module = adapted.eval()
    return loaded


def write_head(folder: Path, tensors: Mapping[str, Tensor], head_modules: Iterable[str]) -> None:
    """Store tensors of the base (plain names) beside an adapter that has just been saved in `folder`: the task heads',
    and running statistics that training changed.

    In PEFT's layout the heads join adapter_model.safetensors under peft's names, and `modules_to_save` tells peft to
    train and load them; all else joins head.safetensors. Each file is replaced in one step.
    """
    layout = (folder / CONFIG).is_file()
    heads = tuple(f"{module}." for module in head_modules) if layout else ()
    others = {name: tensor for name, tensor in tensors.items() if not (heads and name.startswith(heads))}
    if others:
        earlier = read_tensors(folder / HEAD) if (folder / HEAD).is_file() else {}
        write_tensors(folder / HEAD, {**earlier, **others})
    if not heads:
        return
    config = read_config(folder)
    prefix = _stored_root(config)
    stored = read_tensors(folder / WEIGHTS)
    inside = {prefix + name: tensor for name, tensor in tensors.items() if name not in others}
    write_tensors(folder / WEIGHTS, {**stored, **inside})
    config["modules_to_save"] = sorted({*(config.get("modules_to_save") or ()), *head_modules})
    durable.replace(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def read_head(folder: Path) -> dict[str, Tensor]:
    """What `write_head` stored, by plain name, on the CPU; from head.safetensors, with the adapter's own tensors."""
    others = read_tensors(folder / HEAD) if (folder / HEAD).is_file() else {}
    if not (folder / CONFIG).is_file():
        return others
    config = read_config(folder)
    prefix = _stored_root(config)
    heads = tuple(f"{prefix}{module}." for module in config.get("modules_to_save") or ())
    stored = read_tensors(folder / WEIGHTS)
    return {**others, **{n.removeprefix(prefix): t for n, t in stored.items() if heads and n.startswith(heads)}}


def cut(folder: Path, target: Path, module: str, tensors: Mapping[str, Tensor]) -> None:
    """Write to `target` the adapter of `folder` as if it changed this one module: with these tensors, no head."""
    from safetensors.torch import save_file

    config = {**read_config(folder), "target_modules": [module], "target_parameters": None, "modules_to_save": None}
    (target / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(tensors), target / WEIGHTS)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in one step. Tensors may share memory or live on a device; order is by name."""
    from safetensors.torch import save

    ready = {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}
    durable.replace(path, save(ready, metadata={"format": "pt"}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ModelError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Not mapped into memory: whoever rewrites the file in place would take these tensors away.
        return dict(load(path.read_bytes()))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: copy the whole adapter folder again") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read ({' '.join(str(error).split())}): restore the adapter folder"
        ) from error


def stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    """The dtypes of a safetensors file's tensors, from its header alone. Raises ValueError where there is none."""
    return {name: dtype for name, (dtype, _) in Reader(path).shapes.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ModelError if it is missing or damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: copy the whole adapter folder again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): restore the adapter folder") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{path} is damaged: expected an object with `peft_type`; restore the adapter folder")
    imports = next((key for key in IMPORTING if config.get(key)), None)
    if imports is not None:
        raise ModelError(
            f"{path}: {imports!r} would have peft import a module of the file's choice, which is not done: remove it,"
            " or take an adapter without it"
        )
    return config


def _stored_root(config: Mapping[str, Any]) -> str:
    """peft names the tensors of prompt methods after one wrapper, the others' after two."""
    return PROMPT_ROOT if "num_virtual_tokens" in config else TUNER_ROOT
