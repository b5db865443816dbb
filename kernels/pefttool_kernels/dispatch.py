"""Which code computes a product: a pure function of the shapes and the machine, with a reason.

    triton        one fused kernel: the weight is dequantised in registers, the adapter's update is added at the end
    dequantize    one launch dequantises the weight into a workspace, the vendor's library multiplies
    tiles         the CPU: a tile that fits the cache is dequantised and multiplied, then the next
    native        the CPU, few rows: compiled code that dequantises in registers (AVX512-BF16)
    bitsandbytes  its own operators: whatever the others do not read

An automatic choice may fall back, and says why. An explicit one works or raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from pefttool_kernels.layout import BLOCK

Operator = Literal["linear_4bit", "linear_8bit"]
Direction = Literal["forward", "backward"]
BACKENDS = ("triton", "dequantize", "tiles", "native", "bitsandbytes")

#: Up to how many rows of x the compiled code beats the tiles. Measured: see docs/kernels.md.
NATIVE_ROWS = 64
#: bitsandbytes' own fused forward is written for a handful of rows.
BITSANDBYTES_ROWS = 4
#: Up to how many rows the fused kernels are chosen, by compute capability, until `pefttool kernels tune` has measured
#: the card. Calculated from the share of the vendor's speed that a fused kernel must reach; GPU speed is unmeasured.
FUSED_ROWS = {(8, 0): 64, (8, 6): 512, (8, 9): 1024, (9, 0): 64, (10, 0): 64, (12, 0): 1024}
OLDEST_CAPABILITY = (8, 0)  # before it, triton has no tensor-core code
MARGIN = 64 << 20  # bytes that stay free beside a workspace


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot compute this product; the message says why and what can."""


@dataclass(frozen=True)
class Machine:
    """What a device can do. `*_missing` is why a backend is not there, or None."""

    device_type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    processors: int = 0
    free_bytes: int | None = None  # on the device, read once: a workspace must fit into it
    triton_missing: str | None = None
    native_missing: str | None = None
    fused_rows: dict[Direction, int] = field(default_factory=dict)  # measured on this card


class Site(NamedTuple):
    """One product: x [m, k] with W [n, k], forward (x W^T) or backward (g [m, n] W)."""

    operator: Operator
    direction: Direction
    m: int
    n: int
    k: int
    dtype: torch.dtype
    needs_grad: bool = True
    unreadable: str | None = None  # why the triton kernels cannot read this weight


class Choice(NamedTuple):
    backend: str
    reason: str
    fallback: bool = False  # bitsandbytes, because none of ours can: worth saying


def refusal(backend: str, site: Site, machine: Machine) -> str | None:
    """Why `backend` cannot compute this product on this machine, or None."""
    if backend == "bitsandbytes":
        return None
    if site.operator == "linear_4bit" and site.k % BLOCK:
        return f"in_features {site.k} is not a multiple of {BLOCK}: blocks of weights straddle rows"
    on_cpu = machine.device_type == "cpu"
    if backend in ("tiles", "native") and not on_cpu:
        return f"it runs on the CPU, the tensors are on {machine.device_type!r}"
    if backend == "tiles":
        return None
    if backend == "native":
        return _native_refusal(site, machine)
    if on_cpu:
        return "it runs on a GPU, the tensors are on the CPU"
    return _gpu_refusal(backend, site, machine)


def _native_refusal(site: Site, machine: Machine) -> str | None:
    if machine.native_missing:
        return machine.native_missing
    if site.operator != "linear_4bit" or site.direction != "forward":
        return "it computes the forward product of 4-bit weights only"
    if site.dtype != torch.bfloat16:
        return f"it computes in bfloat16, the input is {_name(site.dtype)}"
    return None


def _gpu_refusal(backend: str, site: Site, machine: Machine) -> str | None:
    if machine.triton_missing:
        return machine.triton_missing
    if site.dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels compute in bfloat16 and float16, the input is {_name(site.dtype)}"
    if site.unreadable:
        return site.unreadable
    if machine.capability is None:
        return f"the kernels are written for CUDA devices, this is {machine.device_type!r}"
    if backend == "triton" and machine.capability < OLDEST_CAPABILITY:
        major, minor = machine.capability
        return f"triton has no tensor-core code for compute capability {major}.{minor}: 8.0 is the oldest"
    return None


def choose(site: Site, machine: Machine, requested: str = "auto") -> Choice:
    """The backend of one product. BackendError if the requested one cannot compute it."""
    if requested != "auto":
        return _requested(site, machine, requested)
    if machine.device_type == "cpu":
        return _on_cpu(site, machine)
    return _on_gpu(site, machine)


def _requested(site: Site, machine: Machine, requested: str) -> Choice:
    if requested not in BACKENDS:
        raise BackendError(f"backend {requested!r}: one of {', '.join(BACKENDS)}, or auto")
    if requested == "native" and site.direction == "backward":
        requested = "tiles"  # the forward product is what was asked for; there is one way to its gradient
    reason = refusal(requested, site, machine)
    if reason:
        able = [name for name in BACKENDS if refusal(name, site, machine) is None]
        raise BackendError(f"backend {requested!r} cannot compute this product: {reason}; choose {', '.join(able)}")
    return Choice(requested, "as requested")


def _on_cpu(site: Site, machine: Machine) -> Choice:
    reason = refusal("tiles", site, machine)
    if reason:
        return Choice("bitsandbytes", reason, fallback=True)
    if site.m <= NATIVE_ROWS:
        missing = refusal("native", site, machine)
        if missing is None:
            return Choice("native", f"{_rows(site.m)}: the weight is read once, dequantised in registers")
        return Choice("tiles", f"native code would serve {_rows(site.m)}, but {missing}")
    return Choice("tiles", f"{_rows(site.m)}: a tile of the weight stays in the cache")


def _on_gpu(site: Site, machine: Machine) -> Choice:
    reason = refusal("dequantize", site, machine)
    if reason:
        return Choice("bitsandbytes", reason, fallback=True)
    inference = site.direction == "forward" and not site.needs_grad
    if inference and site.operator == "linear_4bit" and site.m <= BITSANDBYTES_ROWS:
        return Choice("bitsandbytes", f"{_rows(site.m)} without gradients: its kernel for single rows")
    fused = refusal("triton", site, machine)
    if fused:
        return Choice("dequantize", fused)
    workspace = site.n * site.k * site.dtype.itemsize
    if machine.free_bytes is not None and machine.free_bytes < workspace + MARGIN:
        return Choice("triton", f"a workspace of {workspace >> 20} MiB does not fit beside what is there")
    measured = machine.fused_rows.get(site.direction)
    limit = fused_limit(machine) if measured is None else measured
    source = "calculated" if measured is None else "measured on this card"
    if site.m <= limit:
        return Choice("triton", f"{_rows(site.m)}: fused up to {limit} ({source})")
    return Choice("dequantize", f"{_rows(site.m)}: more than {limit} ({source}) go to the vendor's library")


def choose_dequantize(site: Site, machine: Machine, requested: str = "auto") -> Choice:
    """The backend that writes a whole dequantised weight: one launch of triton's kernel, or bitsandbytes' operators."""
    if requested not in ("auto", "dequantize", "bitsandbytes"):
        raise BackendError(
            f"backend {requested!r} does not dequantise a whole weight: dequantize, bitsandbytes or auto"
        )
    reason = refusal("dequantize", site, machine)
    if requested == "bitsandbytes" or (reason and requested == "auto"):
        return Choice("bitsandbytes", reason or "as requested")
    if reason:
        raise BackendError(f"backend 'dequantize' cannot dequantise this weight: {reason}; choose bitsandbytes")
    return Choice("dequantize", "one launch, nested scales too")


def fused_limit(machine: Machine) -> int:
    """The default number of rows up to which the fused kernels are chosen; the nearest older card's for new ones."""
    assert machine.capability is not None
    known = [capability for capability in FUSED_ROWS if capability <= machine.capability]
    return FUSED_ROWS[max(known)] if known else 0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
