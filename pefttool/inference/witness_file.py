"""What a trained model answered, as a hidden file of its run: it waits there until the adapter was loaded again, and
found to answer alike. So a run that was killed before, or whose adapter failed, is judged by the same answers later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pefttool.api.errors import RunError
from pefttool.files import durable, state_tree
from pefttool.inference.recorded_calls import Call
from pefttool.inference.witness import Witness

#: The file's metadata holds JSON under this name, which refers to the tensors.
DOCUMENT = "witness"


def keep(path: Path, trained: Witness | None, device: str) -> None:
    """Write it to `path`; what an earlier attempt at the same end left there goes. Raises OSError.

    A task that calls its model with what safetensors and JSON cannot hold leaves none.
    """
    from safetensors.torch import save

    forget(path)
    if trained is None:
        return
    state = {
        "calls": [dict(call.arguments) for call in trained.calls],
        "answers": list(trained.answers),
        "values": dict(trained.values),
        "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in trained.dtypes.items()},
        "precision": trained.precision,
        "compiled": trained.compiled,
        "device": device,
    }
    try:
        tensors, skeleton = state_tree.flatten(state)
    except RunError:
        return
    content = save({name: t.clone() for name, t in tensors.items()}, metadata={DOCUMENT: json.dumps(skeleton)})
    durable.replace(path, content)


def kept(path: Path, device: str) -> Witness | None:
    """The one that waits at `path`, if it was asked on such a device.

    Raises RunError where the file is damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            state: dict[str, Any] = state_tree.unflatten(json.loads(file.metadata()[DOCUMENT]), tensors)
        found = Witness(
            [Call(arguments) for arguments in state["calls"]],
            state["answers"],
            {name: (first, second) for name, (first, second) in state["values"].items()},
            {name: getattr(torch, dtype) for name, dtype in state["dtypes"].items()},
            state["precision"],
            state["compiled"],
            elsewhere=True,
        )
        return found if torch.device(state["device"]).type == torch.device(device).type else None
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"{path} is damaged ({reason}): remove it, then `pefttool check {path.parent}`") from error


def forget(path: Path) -> None:
    """Once the adapter has answered as the trained model did. Raises OSError."""
    path.unlink(missing_ok=True)
