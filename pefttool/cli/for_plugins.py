"""What the command of a plugin may use: flags that mean the same everywhere, the registry, a model, a device, output.

Importing this imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.cli.common import current_registry
from pefttool.cli.kinds import JSON
from pefttool.cli.output import plain_line, print_json, print_table
from pefttool.cli.use import DEVICE, DTYPE, FORMAT, TRUST

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "DEVICE",
    "DTYPE",
    "FORMAT",
    "JSON",
    "TRUST",
    "abstract_model",
    "choose_device",
    "current_registry",
    "find_model",
    "plain_line",
    "print_json",
    "print_table",
]


def find_model(reference: str, weights: bool = True) -> tuple[Path, str]:
    """(the folder, the name that finds it again) of what `--model` takes. Raises PefttoolError.

    Without `weights` those of a model on the hub are not downloaded.
    """
    from pefttool.models import hub

    found = hub.resolve(reference, current_registry(), weights=weights)
    return found.path, found.id


def abstract_model(folder: Path, auto_class: Any) -> nn.Module:
    """The model of this folder on the meta device: from its config.json, no weight is read. Raises ModelError."""
    from pefttool.models.pretrained import LocalPretrained

    return LocalPretrained(folder, abstract=True).model(auto_class)


def choose_device(asked: str, dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """The device and the arithmetic that a run with `--device` (and `--dtype`) has here. Raises UsageError."""
    import torch

    from pefttool.setup import devices

    choice = devices.choose(devices.report(), asked, dtype)
    return torch.device(choice.device), getattr(torch, choice.dtype)
