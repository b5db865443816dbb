"""bitsandbytes' linear layers with our forward pass: the same parameters, the same checkpoints, no state of our own.

`module.__class__ = FusedLinear4bit` is all that it takes to change a layer, and assigning the old class changes it
back. A weight that the kernels do not read is left to bitsandbytes, unless a backend was asked for by name.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module
from torch import Tensor, nn

from pefttool_kernels import ops
from pefttool_kernels.layout import EightBitWeight, FourBitWeight, UnsupportedLayout

logger = logging.getLogger(__name__)


class FusedLinear4bit(bitsandbytes.nn.Linear4bit):
    """`Linear4bit` through `ops.linear_4bit`: evaluation computes as training does, and nothing is ever repacked."""

    #: Set on a layer, or on the class: a name from `dispatch.BACKENDS`, or "auto".
    backend = "auto"
    #: bitsandbytes repacks a layer's weight in place, for good, where this is true: never, whatever is assigned.
    support_avx512bf16_for_cpu = property(lambda self: False, lambda self, value: None)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in x's dtype; the product is in `compute_dtype` if it is set."""
        return self.product(x)

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        """The forward pass, with a low-rank update added inside the product."""
        try:
            weight = view_4bit(self)
        except UnsupportedLayout as problem:
            return _left_to_library(self, super().forward, x, lora, problem)
        inputs = x.to(self.compute_dtype) if self.compute_type_is_set and self.compute_dtype is not None else x
        return ops.linear_4bit(inputs, weight, self.bias, lora, self.backend).to(x.dtype)


class FusedLinear8bit(bitsandbytes.nn.Linear8bitLt):
    """`Linear8bitLt` through `ops.linear_8bit`: weight-only, so x is never quantised, in evaluation either."""

    backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in x's dtype."""
        return self.product(x)

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        """The forward pass, with a low-rank update added inside the product."""
        try:
            weight = view_8bit(self)
        except UnsupportedLayout as problem:
            return _left_to_library(self, super().forward, x, lora, problem)
        return ops.linear_8bit(x, weight, self.bias, lora, self.backend).to(x.dtype)


def view(layer: nn.Module) -> FourBitWeight | EightBitWeight:
    """What a quantised layer stores. UnsupportedLayout if the kernels do not read it."""
    return view_8bit(layer) if isinstance(layer, bitsandbytes.nn.Linear8bitLt) else view_4bit(layer)


def view_4bit(layer: Any) -> FourBitWeight:
    """The 4-bit weight of a `Linear4bit`."""
    fix_4bit_weight_quant_state_from_module(layer)
    return FourBitWeight.of(layer.weight.data, layer.weight.quant_state)


def view_8bit(layer: Any) -> EightBitWeight:
    """The 8-bit weight of a `Linear8bitLt`; its scales move from the parameter to `state` when bitsandbytes uses it."""
    weight = layer.weight
    if weight.dtype != torch.int8:
        raise UnsupportedLayout(f"a weight of {weight.dtype}: it has not been quantised yet")
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    return EightBitWeight(weight.data, scales.to(weight.device))


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    bitsandbytes.nn.Linear4bit: FusedLinear4bit,
    bitsandbytes.nn.LinearNF4: FusedLinear4bit,
    bitsandbytes.nn.LinearFP4: FusedLinear4bit,
    bitsandbytes.nn.Linear8bitLt: FusedLinear8bit,
}


def fuse(model: nn.Module, backend: str = "auto") -> list[nn.Module]:
    """Give every quantised linear layer of `model`, of exactly bitsandbytes' classes, our forward pass; return them."""
    layers = [module for module in model.modules() if type(module) in FUSED]
    for layer in layers:
        layer.__class__ = FUSED[type(layer)]
        if backend != "auto":
            layer.backend = backend
    return layers


def _left_to_library(
    layer: Any, forward: Any, x: Tensor, lora: ops.LowRank | None, problem: UnsupportedLayout
) -> Tensor:
    if layer.backend not in ("auto", "bitsandbytes"):
        raise problem
    _say(type(layer).__name__, str(problem))
    output: Tensor = forward(x)
    return output if lora is None else output + composed(x, lora).to(output.dtype)


def composed(x: Tensor, lora: ops.LowRank) -> Tensor:
    """scaling (x A^T) B^T in A's dtype, in PyTorch's own operators."""
    return nn.functional.linear(nn.functional.linear(x.to(lora.a.dtype), lora.a), lora.b) * lora.scaling


@functools.cache
def _say(layer: str, reason: str) -> None:
    logger.warning("%s: left to bitsandbytes: %s", layer, reason)
