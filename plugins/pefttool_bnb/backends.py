"""A backend that was asked for by name multiplies by every quantised layer, or is refused before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pefttool import Facts, ModelError

if TYPE_CHECKING:
    from pefttool_kernels.dispatch import Machine, Operator

ON_CPU = ("tiles", "native", "bitsandbytes")


def refusal(operator: Operator, backend: str, facts: Facts) -> str | None:
    """Why this backend multiplies by nothing on the run's device and in its dtype, or None. No driver is asked."""
    if backend == "auto":
        return None
    import torch

    from pefttool_kernels import machine

    kind = facts.device.partition(":")[0]
    here = machine.of(torch.device("cpu")) if kind == "cpu" else _imagined(kind)
    return _refusal(operator, backend, here, dtype=facts.dtype)


def require(operator: Operator, backend: str, layers: Iterable[Any]) -> None:
    """Raise ModelError for the first of these linear layers, or of their stand-ins, that the backend cannot take.

    A layer in host memory may wait there for another device: what that device can do has been asked by `refusal`.
    """
    if backend == "auto":
        return
    from pefttool_kernels import machine

    for layer in layers:
        device = layer.weight.device
        here = machine.of(device) if device.type == "cuda" else _imagined("cpu" if backend in ON_CPU else "cuda")
        reason = _unsupported(layer, backend) or _refusal(
            operator, backend, here, layer.out_features, layer.in_features
        )
        if reason is not None:
            raise ModelError(f"quantize: {reason}, or drop quantize.backend")


def _imagined(kind: str) -> Machine:
    """A machine of this kind that has all that any backend needs."""
    from pefttool_kernels.dispatch import OLDEST_CAPABILITY, Machine

    return Machine(kind, capability=OLDEST_CAPABILITY if kind == "cuda" else None)


def _refusal(
    operator: Operator, backend: str, here: Machine, n: int = 64, k: int = 64, dtype: str = "bfloat16"
) -> str | None:
    import torch

    from pefttool_kernels import dispatch
    from pefttool_kernels.layout import BLOCK

    odd = f"in_features {k} is not a multiple of {BLOCK}" if k % BLOCK else None
    site = dispatch.Site(operator, "forward", 1, n, k, getattr(torch, dtype), unreadable=odd)
    try:
        dispatch.choose(site, here, backend)
    except dispatch.BackendError as error:
        return str(error)
    return None


def _unsupported(layer: Any, backend: str) -> str | None:
    """Why the kernels do not read how this layer is stored; bitsandbytes itself does."""
    from pefttool_kernels import layout, modules

    if backend == "bitsandbytes" or not isinstance(layer, (modules.FusedLinear4bit, modules.FusedLinear8bit)):
        return None
    try:
        modules.view(layer)
    except layout.UnsupportedLayout as problem:
        return f"backend {backend!r} cannot compute this product: {problem}; choose bitsandbytes"
    return None
