"""What the three quantizers share: asking for bitsandbytes, refusing, and repairing what was loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pefttool import Facts, ModelError

if TYPE_CHECKING:
    from torch import nn


def bitsandbytes() -> Any:
    """The library. Its warnings are off: they advise on settings that are decided here, some at every layer."""
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def refusal(quantizer: str, facts: Facts) -> str | None:
    """Why this model cannot be stored by bitsandbytes, or None."""
    if facts.device.startswith("mps"):
        return (
            f"{quantizer!r} is untested on MPS, where bitsandbytes is new: drop it, or use `device: cpu`"
            " (adapters train on an unquantised base too)"
        )
    if not facts.linear_modules:
        return (
            f"{quantizer!r} stores linear layers, and the backbone of {facts.architecture} has none"
            " (torch.nn.Linear): drop it, or choose another model"
        )
    return None


def load_arguments(config: Any, facts: Facts) -> dict[str, Any]:
    """For `from_pretrained`. The device is always named: without it transformers takes the GPU if there is one."""
    return {"quantization_config": config, "device_map": {"": facts.device}}


def read_stored(stored: Mapping[str, Any], tensors: Collection[str], mark: str) -> tuple[str, ...] | None:
    """Patterns of the modules that a folder of quantised weights keeps in floating point; None: the usual ones.

    `mark` ends the name of a tensor that every quantised weight has in the files. Raises ModelError for what is stored
    in a way that is untested here.
    """
    odd = {"bnb_4bit_quant_storage": ("uint8", None), "llm_int8_has_fp16_weight": (False, None)}
    for key, usual in odd.items():
        if stored.get(key) not in usual:
            raise ModelError(
                f"model: its weights are stored with {key}={stored[key]!r}, and those with {usual[0]!r} can be trained"
                " on: quantise the 16-bit model that it was made from, with --quantize"
            )
    quantised = {name.removesuffix(mark) for name in tensors if name.endswith(mark)}
    if quantised:
        plain = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")} - quantised
        return tuple(sorted(plain))
    skipped = stored.get("llm_int8_skip_modules")
    return None if skipped is None else tuple(skipped)


def unquantised(facts: Facts, stored: Iterable[str] | None = None) -> list[str] | None:
    """Patterns of the modules that stay in floating point: new task heads, and the pretrained output layer.

    transformers' own guess does not know the heads: it would quantise BERT's `classifier`. It tries a pattern as a
    regular expression at a name's start and as a suffix; the `^` rules out the suffix. None leaves the guess, which
    finds the output layer, to models whose output layer is not known. `stored` are patterns that a folder of quantised
    weights brings with it.
    """
    own = [f"^{re.escape(name)}" for name in (*facts.head_modules, *facts.output_modules)]
    return [*own, *(stored or ())] or None


def keeps(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether transformers leaves a linear layer of this name in floating point."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    return not should_convert_module(name, None if patterns is None else list(patterns))


def repair(
    model: nn.Module, quantizer: str, linear: type[nn.Module], parameter: type, stored_already: bool = False
) -> list[Any]:
    """The modules of class `linear` in a freshly loaded model, all of them quantised.

    A layer that the model has and the checkpoint lacks (BERT's pooler, often) was initialised but not quantised, and
    would fail when it is called: it becomes a plain `nn.Linear`. ModelError if nothing or the output layer is
    quantised.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, linear) and not isinstance(module.weight, parameter):
            model.set_submodule(name, _plain(module))
    quantised = [module for module in model.modules() if isinstance(module, linear)]
    if not quantised:
        raise ModelError(f"quantize: {quantizer!r} found nothing to store in {type(model).__name__}: drop it")
    outputs = getattr(model, "get_output_embeddings", None)
    if outputs is not None and isinstance(outputs(), linear) and stored_already:
        raise ModelError(
            f"model: the output layer of this {type(model).__name__} is stored as {quantizer!r} as well, and has to be"
            " in floating point: give another copy, or the 16-bit model with --quantize"
        )
    if outputs is not None and isinstance(outputs(), linear):
        raise ModelError(
            f"quantize: {quantizer!r} has quantised the output layer of {type(model).__name__}, which must stay"
            " in floating point: this is a mistake in what was known of the model; drop it, and please report this"
        )
    return quantised


def fuse(model: nn.Module, backend: str) -> None:
    """Give every quantised layer the forward pass of `pefttool_kernels`."""
    from pefttool_kernels import modules

    modules.fuse(model, backend)


def _plain(module: Any) -> nn.Linear:
    from torch import nn

    plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(module.weight.data, requires_grad=False)
    plain.bias = module.bias
    plain.train(module.training)
    return plain
