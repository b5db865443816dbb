"""Bytes of a device that are in use, free, and there."""

from __future__ import annotations


def memory_in_use(device: str) -> int:
    """Bytes: the peak allocated on a CUDA device, or the resident memory of this process."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_here(device: str) -> int | None:
    """Bytes of memory that `device` of this machine has, all of it; None where nobody can say (MPS)."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(int(index or 0)).total_memory)
    if kind == "cpu":
        import psutil

        return int(psutil.virtual_memory().total)
    return None


def free(device: str) -> int:
    import psutil
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
