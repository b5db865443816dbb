"""What the device under a tensor can do, asked once per device and never at import."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
from pathlib import Path

import torch

from pefttool_kernels.dispatch import Direction, Machine

logger = logging.getLogger(__name__)

MAX_TEXT = 200


def of(device: torch.device) -> Machine:
    """The machine of a tensor's device. For "meta" and fake tensors' devices nothing is asked of any driver."""
    return _describe(device.type, device.index)


@functools.cache
def _describe(device_type: str, index: int | None) -> Machine:
    if device_type == "cpu":
        from pefttool_kernels.cpu import native

        return Machine("cpu", native_missing=native.missing())
    if device_type != "cuda" or torch.version.hip:
        return Machine(device_type, triton_missing=not_installed())
    properties = torch.cuda.get_device_properties(index if index is not None else torch.cuda.current_device())
    return Machine(
        "cuda",
        name=properties.name,
        capability=(properties.major, properties.minor),
        processors=properties.multi_processor_count,
        free_bytes=torch.cuda.mem_get_info(index)[0],
        triton_missing=triton_missing(torch.device(device_type, index)),
        fused_rows=measured_rows(properties.name),
    )


def not_installed() -> str | None:
    """Why there is no triton on this machine, or None; whether it can launch anything is another matter."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (on Linux it comes with a CUDA build of torch)"
    return None


@functools.cache
def triton_missing(device: torch.device) -> str | None:
    """Why triton's kernels cannot be had on this CUDA device, or None. The reason is logged, once.

    A tiny kernel is launched: triton compiles its launcher on the machine itself, so that without a C compiler or
    Python's headers it can be imported, and that is all.
    """
    reason = not_installed() or _cannot_launch(device)
    if reason is not None:
        logger.warning("%s; PyTorch's and bitsandbytes' operators compute instead", reason)
    return reason


def _cannot_launch(device: torch.device) -> str | None:
    try:
        from pefttool_kernels.triton import probe

        probe.launch(device)
    except torch.OutOfMemoryError:  # says nothing about triton
        raise
    except Exception as error:  # a compiler's, a driver's, anybody's
        text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_TEXT]
        return (
            f"triton cannot launch a kernel here ({text}): most often a C compiler or Python's headers are missing"
            " (Debian and Ubuntu: apt install gcc python3-dev)"
        )
    return None


def calibration_file(name: str) -> Path:
    """Where the limits measured on the card of this name are kept."""
    cache = os.environ.get("PEFTTOOL_CACHE")
    root = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pefttool"
    return root / "kernels" / f"{name.replace(' ', '-').replace('/', '-')}.json"


def measured_rows(name: str) -> dict[Direction, int]:
    """What was measured on this card: up to how many rows the fused kernels are faster, by direction; or nothing."""
    try:
        record = json.loads(calibration_file(name).read_text(encoding="utf-8"))
        return {"forward": int(record["forward"]), "backward": int(record["backward"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def record_rows(name: str, forward: int, backward: int) -> Path:
    """Keep what was measured. The next process reads it; this one goes on with what it had."""
    path = calibration_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"card": name, "forward": forward, "backward": backward}), encoding="utf-8")
    aside.replace(path)
    return path
