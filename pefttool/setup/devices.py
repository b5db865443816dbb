"""Which device a run uses and in which arithmetic: `report` asks torch, `choose` decides by what it was told.

`choose` is a pure function of `DeviceFacts`, so that every device can be tested on any machine. What is asked for
works or raises; only `auto` may fall back, and every choice carries its reason.

    device               dtype auto   autocast   gradient scaling
    CUDA, sm_80 and up   bfloat16     bfloat16   no
    CUDA, older          float16      float16    yes
    MPS                  float32      none       no
    CPU with bf16        bfloat16     bfloat16   no
    CPU without          float32      none       no

`dtype` is that of the frozen weights; what trains is always float32. bfloat16 is never chosen where it is emulated:
`torch.cuda.is_bf16_supported()` says True on sm_75, whose bfloat16 is slower than float32.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

from pefttool.api.errors import UsageError, suggest
from pefttool.config import sizes

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
DTYPES = ("auto", "bfloat16", "float16", "float32")
#: The first compute capability with bfloat16 instructions (Ampere).
NATIVE_BFLOAT16 = (8, 0)
#: CPU instructions that multiply bfloat16: key in `torch.cpu.get_capabilities()` -> the name people know.
CPU_BFLOAT16 = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}


@dataclass(frozen=True)
class CudaDevice:
    """One CUDA device: `capability` is (major, minor), `memory` its total in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def architecture(self) -> str:
        return "sm_{}{}".format(*self.capability)


@dataclass(frozen=True)
class DeviceFacts:
    """What this machine and this torch have.

    build           what torch was compiled for
    cuda            visible CUDA devices, in torch's order
    mps             Apple's GPU is usable
    mps_bfloat16    it computes in bfloat16: macOS 14 or later, on a chip that has BF16 instructions (M2 or later)
    cpu_bfloat16    the CPU's bfloat16 instructions by name, or None
    """

    build: Literal["cpu", "cuda", "rocm"] = "cpu"
    cuda: tuple[CudaDevice, ...] = ()
    mps: bool = False
    mps_bfloat16: bool = False
    cpu_bfloat16: str | None = None


@dataclass(frozen=True)
class Choice:
    """Where and how to compute.

    device         as `torch.device` takes it; `cuda` without a number is the process's current device
    dtype          of the frozen weights, by torch's name
    autocast       dtype of the forward pass's matrix products, or None for no autocast
    grad_scaler    the loss has to be scaled, for float16's gradients underflow
    reason         one line for the user
    """

    device: str
    dtype: str
    autocast: str | None
    grad_scaler: bool
    reason: str


def report() -> DeviceFacts:
    """Ask torch once. Initialises CUDA where there is CUDA, so that training processes must not be forked after it."""
    import torch

    build: Literal["cpu", "cuda", "rocm"] = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    devices: tuple[CudaDevice, ...] = ()
    if build == "cuda" and torch.cuda.is_available():
        found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        devices = tuple(CudaDevice(p.name, (p.major, p.minor), p.total_memory) for p in found)
    # Releases before `get_capabilities` cannot be asked in public; nothing known means float32.
    ask = getattr(torch.cpu, "get_capabilities", dict)
    capabilities: Mapping[str, Any] = ask()
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    mps = torch.backends.mps.is_available()
    return DeviceFacts(
        build=build,
        cuda=devices,
        mps=mps,
        mps_bfloat16=mps and torch.backends.mps.is_macos_or_newer(14, 0) and bool(capabilities.get("bf16")),
        cpu_bfloat16=cpu_bfloat16(capabilities, onednn),
    )


def imagined(given: str, here: DeviceFacts) -> tuple[DeviceFacts, str, int | None]:
    """(facts, device, memory in bytes or None): a machine to plan for, from `cuda:8GiB`, `cpu:16GiB`, `cuda` or `mps`.

    A card that is only imagined has bfloat16 (sm_80 or newer). UsageError for what is no device.
    """
    kind, _, rest = given.partition(":")
    if kind not in ("cuda", "cpu", "mps") or (":" in given and not rest):
        raise UsageError(f"for: unknown {given!r}: use cuda:8GiB, cpu:16GiB or mps:16GiB, with the memory it has")
    if kind == "cuda" and rest.isdecimal():
        return here, given, here.cuda[int(rest)].memory if int(rest) < len(here.cuda) else None
    try:
        memory = sizes.parse(rest) if rest else None
    except ValueError as error:
        raise UsageError(f"for: {given!r}: after {kind}: comes {error}") from error
    if kind == "cpu":
        return replace(here, cuda=(), mps=False), kind, memory
    if kind == "mps":
        return DeviceFacts(mps=True), kind, memory
    card = CudaDevice("a card with native bfloat16", NATIVE_BFLOAT16, memory or 0)
    return DeviceFacts(build="cuda", cuda=(card,)), kind, memory


def cpu_bfloat16(capabilities: Mapping[str, Any], onednn: bool) -> str | None:
    """The bfloat16 instructions that matrix products will use; without oneDNN torch uses none of them."""
    return next((name for key, name in CPU_BFLOAT16.items() if onednn and capabilities.get(key)), None)


def choose(facts: DeviceFacts, device: str = "auto", dtype: str = "auto") -> Choice:
    """CUDA before MPS before CPU, in the fastest arithmetic that is native there. UsageError for what cannot be."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype: unknown {dtype!r}: {suggest(dtype, DTYPES)}")
    chosen, why_device = _device(facts, device)
    if chosen.startswith("cuda"):
        arithmetic, why_dtype = _cuda_dtype(facts.cuda[int(chosen.partition(":")[2] or 0)], dtype)
    elif chosen == "mps":
        arithmetic, why_dtype = _mps_dtype(facts, dtype)
    else:
        arithmetic, why_dtype = _cpu_dtype(facts, dtype)
    return Choice(
        device=chosen,
        dtype=arithmetic,
        autocast=None if arithmetic == "float32" else arithmetic,
        grad_scaler=arithmetic == "float16",
        reason=f"{chosen}: {why_device}; {arithmetic}: {why_dtype}",
    )


def _device(facts: DeviceFacts, asked: str) -> tuple[str, str]:
    if asked == "auto":
        if facts.cuda:
            return "cuda", _describe(facts.cuda[0])
        if facts.mps:
            return "mps", "no CUDA device, but Apple's GPU"
        return "cpu", "no CUDA or MPS device" + _untested_build(facts)
    if asked == "cpu":
        return asked, "as asked"
    if asked == "mps":
        if not facts.mps:
            raise UsageError("device: 'mps': there is no usable Apple GPU here: use device auto or cpu")
        return asked, "as asked"
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", asked, flags=re.ASCII)
    if match is None:
        raise UsageError(f"device: unknown {asked!r}: {suggest(asked, DEVICES)}")
    return _cuda_device(facts, asked, int(match[1] or 0))


def _cuda_device(facts: DeviceFacts, asked: str, index: int) -> tuple[str, str]:
    if not facts.cuda:
        why = {
            "cpu": "this torch is built for the CPU only: install a CUDA build of torch",
            "rocm": "this torch is built for ROCm, which is untested and not used: install a CUDA build of torch",
            "cuda": "torch sees no CUDA device: look at the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES",
        }[facts.build]
        raise UsageError(f"device: {asked!r}: {why}, or use device auto or cpu")
    if index >= len(facts.cuda):
        there = ", ".join(f"cuda:{i} ({d.name})" for i, d in enumerate(facts.cuda))
        raise UsageError(f"device: {asked!r}: there is no such device: use one of {there}")
    return ("cuda" if asked == "cuda" else f"cuda:{index}"), f"{_describe(facts.cuda[index])}, as asked"


def _untested_build(facts: DeviceFacts) -> str:
    return " (this torch is built for ROCm, which is untested and not used)" if facts.build == "rocm" else ""


def _describe(device: CudaDevice) -> str:
    return f"{device.name}, {device.memory / 2**30:.0f} GiB" if device.memory else device.name


def _cuda_dtype(device: CudaDevice, asked: str) -> tuple[str, str]:
    native = device.capability >= NATIVE_BFLOAT16
    if asked == "auto" and native:
        return "bfloat16", f"native on {device.architecture}"
    if asked == "auto":
        return "float16", f"{device.architecture} has no native bfloat16; gradients are scaled"
    if asked == "bfloat16" and not native:
        raise UsageError(
            f"dtype: 'bfloat16': {device.name} ({device.architecture}) would emulate it; native from sm_80 on:"
            " use dtype auto, float16 or float32"
        )
    return asked, "as asked; gradients are scaled" if asked == "float16" else "as asked"


def _mps_dtype(facts: DeviceFacts, asked: str) -> tuple[str, str]:
    if asked == "auto":
        return "float32", "the safe choice on MPS, where nothing less has been tested"
    if asked == "bfloat16" and not facts.mps_bfloat16:
        raise UsageError("dtype: 'bfloat16': on MPS it needs macOS 14 and an M2 or later: use dtype auto or float32")
    if asked == "float16":
        raise UsageError(
            "dtype: 'float16': on MPS training in it is untested (gradients underflow): use dtype auto or float32"
        )
    return asked, "as asked"


def _cpu_dtype(facts: DeviceFacts, asked: str) -> tuple[str, str]:
    if asked == "auto" and facts.cpu_bfloat16:
        return "bfloat16", f"this CPU has {facts.cpu_bfloat16}"
    if asked == "auto":
        return "float32", "this CPU has no bfloat16 instructions"
    if asked == "bfloat16" and not facts.cpu_bfloat16:
        raise UsageError(
            f"dtype: 'bfloat16': this CPU has none of {', '.join(CPU_BFLOAT16.values())} and would emulate it:"
            " use dtype auto or float32"
        )
    if asked == "float16":
        raise UsageError(
            "dtype: 'float16': CPUs have no fast arithmetic in it and its gradients underflow:"
            " use dtype auto, bfloat16 (where it is native) or float32"
        )
    return asked, f"as asked; this CPU has {facts.cpu_bfloat16}" if asked == "bfloat16" else "as asked"


def optimizer_refused(name: str, device: str) -> str | None:
    """Why this optimiser cannot run on this device (a `torch.device` string), and what can; or None."""
    kind = device.partition(":")[0]
    if name in ("adamw", "sgd") or kind == "cuda":
        return None
    if kind == "cpu":
        return (
            None if name == "adamw_8bit" else f"{name!r} moves its state out of a CUDA device; on a CPU use adamw_8bit"
        )
    return f"{name!r}: bitsandbytes has no optimisers for {kind!r}; use adamw"


def compiler_missing(device: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What torch.compile needs for this device and does not find, and how to get it; or None."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        if not find_spec("triton"):
            return "needs triton on a CUDA device; install it, or drop this"
        names = [environment["CC"]] if environment.get("CC") else ["gcc", "clang"]
        if not any(map(shutil.which, names)):
            return f"needs a C compiler, and there is no {' or '.join(map(repr, names))}; install one, or set CC"
        return None
    if kind != "cpu":
        return f"is untested on {kind!r}; drop it"
    compiler = environment.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return (
        None
        if shutil.which(compiler)
        else f"needs a C++ compiler, and there is no {compiler!r}; install it, or set CXX"
    )
