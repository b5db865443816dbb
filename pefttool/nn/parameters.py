"""What a model's parameters are: linear layers, which can be adapted and quantised, and everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EXPERTS", "show"]

LINEAR, EXPERTS, EMBEDDINGS, OUTPUT = "linear layers", "expert tensors", "embeddings", "output layer"
CONVOLUTIONS, OTHERS = "convolutions", "others"
#: Shares of a model's parameters: from the first on it is said that they are not quantised, and of what, from the
#: second on.
MANY, NAMED = 0.25, 0.02
#: Where code of models lies: transformers' own, and what comes with a model that is trusted.
MODELS = ("transformers.models.", "transformers_modules.")


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer that answers as one: [..., in_features] -> [..., out_features].

    Some models derive their routers from `nn.Linear`, and these answer with several tensors.
    """
    import torch
    from torch import nn

    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward or not type(module).__module__.startswith(MODELS):
        return True  # torch's own, or a quantizer's
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in module.named_parameters()}
    x = torch.empty(2, 3, module.in_features, dtype=module.weight.dtype, device="meta")
    try:
        answer = torch.func.functional_call(module, empty, (x,))
    except Exception:  # whatever a model's own code does with such an input
        return False
    return isinstance(answer, torch.Tensor) and answer.shape == (2, 3, module.out_features)


def is_plain(module: nn.Module) -> bool:
    """Whether a linear layer is torch's own, or one of the model's own code: no quantizer has put it there."""
    from torch import nn

    return type(module) is nn.Linear or type(module).__module__.startswith(MODELS)


def kinds(model: nn.Module, linear: Collection[str], outputs: Sequence[str]) -> dict[str, str]:
    """The kind of each parameter by its name; one that several modules share is what it is first.

    `linear` are the backbone's linear layers, of which the weights count, and `outputs` the pretrained output layers.
    Expert tensors hold the weights of several experts at once, and no linear layer calls them.
    """
    owners = dict(model.named_modules())
    layers, within = frozenset(linear), tuple(f"{name}." for name in outputs)
    found = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in layers:
            found[name] = LINEAR if parameter.ndim > 1 else OTHERS
        elif within and name.startswith(within):
            found[name] = OUTPUT
        else:
            found[name] = _kind(owner, owners[owner], parameter)
    return found


def _kind(name: str, owner: nn.Module, parameter: nn.Parameter) -> str:
    from torch import nn

    if isinstance(owner, nn.Embedding):
        return EMBEDDINGS
    if isinstance(owner, nn.modules.conv._ConvNd):
        return CONVOLUTIONS
    of_experts = "expert" in name.lower() or "expert" in type(owner).__name__.lower()
    return EXPERTS if of_experts and parameter.ndim > 1 and not isinstance(owner, nn.Linear) else OTHERS


def count(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, int]:
    """How many parameters are of each kind."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[kinds[name]] += parameter.numel()
    return dict(found)


def show(part: int, whole: int) -> str:
    """`29.0 of 30.5 billion`; below a million both numbers in full."""
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if whole >= size:
            return f"{part / size:.1f} of {whole / size:.1f} {unit}"
    return f"{part:,} of {whole:,}"


def unreached(counts: Mapping[str, int], stored: int, quantizer: str, dtype: str) -> str | None:
    """What to say of parameters that a quantizer leaves as they are, where they are many; or None.

    `counts` are those of the whole model by kind, and `stored` is how many weights of linear layers are quantised.
    """
    total = sum(counts.values())
    left = {**counts, LINEAR: counts.get(LINEAR, 0) - stored}
    if total - stored < MANY * total:
        return None
    large = sorted((n for n in left if left[n] >= NAMED * total), key=lambda n: -left[n])
    kinds = ", ".join(f"{name} ({left[name] / total:.0%})" for name in large)
    return f"{show(total - stored, total)} parameters stay in {dtype}, as {quantizer!r} leaves them: {kinds}"
