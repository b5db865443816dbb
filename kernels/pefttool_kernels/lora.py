"""peft's LoRA layers: the update is added inside the base's product, where peft's own conditions allow it.

Otherwise (dropout on the input, DoRA and other variants, several active adapters, merged or disabled ones, hooks on
the base layer) peft's forward pass composes it from two products and a sum, as always.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.lora.bnb import Linear8bitLt as PeftLinear8bitLt
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from pefttool_kernels import linear
from pefttool_kernels.modules import FusedLinear4bit, FusedLinear8bit
from pefttool_kernels.ops import LowRank


def update(layer: Any) -> LowRank | str:
    """The low-rank update that a peft LoRA layer adds right now, or why it is not one plain update."""
    if layer.disable_adapters or layer.merged:
        return "its adapters are disabled or merged"
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return f"{len(active)} adapters are active, not one"
    (name,) = active
    if name in layer.lora_variant:
        return f"{name!r} is a variant of LoRA ({type(layer.lora_variant[name]).__name__})"
    dropout = layer.lora_dropout[name]
    if layer.training and not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0:
        return f"{name!r} drops out inputs"
    a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    if type(a) is not nn.Linear or type(b) is not nn.Linear or a.bias is not None or b.bias is not None:
        return f"{name!r} has other layers than two plain linear ones"
    if any(module._forward_hooks or module._forward_pre_hooks for module in (a, b, base)):
        return "a hook waits for one of its parts to be called"
    return LowRank(a.weight, b.weight, layer.scaling[name])


class _UpdateInProduct:
    """The update goes into the base's product, where that can be; otherwise the forward pass is peft's."""

    base_layer: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's: x [..., in_features] -> [..., out_features] in the dtype that peft's layer gives."""
        plain = update(self) if not args and not kwargs else "it was called with more than an input"
        result = None if isinstance(plain, str) else self._product(x, plain)
        if result is not None:
            return result
        composed: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return composed

    def _product(self, x: Tensor, plain: LowRank) -> Tensor | None:
        base = self.base_layer
        if hasattr(base, "product"):
            result: Tensor = base.product(x, plain)
            return result
        return linear.product(x, base.weight, base.bias, plain) if linear.refusal(x, base, plain) is None else None


class FusedLora4bit(_UpdateInProduct, PeftLinear4bit):
    """peft's `lora.Linear4bit` over a `FusedLinear4bit`."""


class FusedLora8bit(_UpdateInProduct, PeftLinear8bitLt):
    """peft's `lora.Linear8bitLt` over a `FusedLinear8bit`."""


class FusedLora(_UpdateInProduct, PeftLinear):
    """peft's `lora.Linear` over a plain frozen `nn.Linear`, or a layer that has a `product(x, update)` of its own."""


FUSED: dict[type[nn.Module], tuple[type[nn.Module], type[nn.Module]]] = {
    PeftLinear4bit: (FusedLinear4bit, FusedLora4bit),
    PeftLinear8bitLt: (FusedLinear8bit, FusedLora8bit),
}


def fuse(model: nn.Module) -> list[nn.Module]:
    """Let every LoRA layer of `model` on a plain linear layer or one of ours add its update there; return them."""
    fused = []
    for module in model.modules():
        base, own = FUSED.get(type(module), (None, None))
        if base is not None and isinstance(module.base_layer, base):
            module.__class__ = own
            fused.append(module)
        elif type(module) is PeftLinear and (
            type(module.base_layer) is nn.Linear or hasattr(module.base_layer, "product")
        ):
            module.__class__ = FusedLora
            fused.append(module)
    return fused
