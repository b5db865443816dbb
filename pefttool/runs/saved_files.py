"""What the core saves beside an adapter's own files, and whether all of them hold what training made of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.api.events import Notice
from pefttool.config.emitter import Emitter
from pefttool.files.safetensors_file import Reader
from pefttool.setup.attach import Adapted
from pefttool.toolkit import peft_folder

if TYPE_CHECKING:
    from torch import Tensor


def report(folder: Path, adapted: Adapted, how: str, emit: Emitter) -> None:
    """Say what `check` found, unless the recipe's `check` is `none`."""
    if how != "none":
        emit(Notice(text=check(folder, adapted)))


def check(folder: Path, adapted: Adapted) -> str:
    """Read the saved files and compare them with the trained parameters, bit by bit; what was found, in one line.

    A parameter is looked for under its own name. What is stored otherwise (a prefix, in one tensor) is compared as the
    values that it is made of. Raises RunError if a value, the task head, or a buffer that training changed is not there
    as it is in the model.
    """
    stored = _stored(folder)
    left, found = dict(stored), 0
    root = peft_folder.root(adapted.model)
    lost = sorted(_lacking(stored, adapted.delivered_buffers(), root))
    if lost:
        raise _wrong(folder, f"lacks {lost[0]!r} as training left it")
    others: list[Tensor] = []
    for name, parameter in adapted.parameters().items():
        value = parameter.detach().cpu()
        key = next((k for k in _names(name, root) if k in stored), None)
        if key is None:
            if name in adapted.head:
                raise _wrong(folder, f"lacks the task head's {name!r}")
            others.append(value)
            continue
        left.pop(key, None)
        reader, own = stored[key]
        if not _same(reader.tensor(own), value):
            raise _wrong(folder, f"holds other values for {name!r} than were trained")
        found += 1
    if others and not _contain([reader.tensor(own) for reader, own in left.values()], others):
        if (folder / peft_folder.CONFIG).is_file():
            raise _wrong(folder, f"lacks values of {len(others)} trained tensors")
        return (
            f"{found} trained tensors are saved bit for bit, {len(others)} in a form of the adapter's own, which only"
            " loading it again can judge"
        )
    return f"the saved adapter holds every trained value, bit for bit ({found + len(others)} tensors)"


def beside_the_adapter(folder: Path, adapted: Adapted, head_modules: Iterable[str]) -> dict[str, Tensor]:
    """What the adapter's files in `folder` leave to the core, by plain name, on the CPU: the task heads, and buffers
    that training changed and that the adapter has not saved itself."""
    heads = tuple(head_modules)
    parameters = peft_folder.head_parameters(adapted.model, heads)
    own = peft_folder.head_buffers(adapted.model, heads)
    changed = _lacking(_stored(folder), adapted.delivered_buffers(), peft_folder.root(adapted.model))
    return {name: t.detach().cpu().contiguous() for name, t in {**parameters, **own, **changed}.items()}


def _stored(folder: Path) -> dict[str, tuple[Reader, str]]:
    """Where each tensor of the folder's files is, by its name."""
    stored: dict[str, tuple[Reader, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        reader = Reader(path)
        stored |= {name: (reader, name) for name in reader.shapes}
    return stored


def _lacking(stored: dict[str, tuple[Reader, str]], tensors: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """Those of `tensors`, by plain name, that are stored under none of their names, bit for bit."""

    def held(name: str, value: Tensor) -> bool:
        places = (stored[key] for key in (*_names(name, root), f"{root}{name}") if key in stored)
        return any(_same(reader.tensor(own), value.detach().cpu()) for reader, own in places)

    return {name: value for name, value in tensors.items() if not held(name, value)}


def _names(name: str, root: str) -> list[str]:
    """What a live parameter, or a base's by its plain name, may be called in a file: as it is, without peft's name for
    the adapter, without the name of the model's only part, or plainly; `root` is what peft puts before all names."""
    plain = name.replace(".default.", ".").removesuffix(".default")
    bare = peft_folder.plain_name(name, root)
    inside = [bare, f"{root}{bare}"] if bare else [f"{root}{name}"]
    return [name, plain, plain.removesuffix(".weight"), name.partition(".")[2], *inside]


def _same(stored: Tensor, trained: Tensor) -> bool:
    import torch

    if stored.shape != trained.shape or stored.dtype != trained.dtype:
        return False
    first, second = (t.contiguous().view(-1).view(torch.uint8) for t in (stored, trained))
    return first.equal(second)


def _contain(stored: list[Tensor], trained: list[Tensor]) -> bool:
    """Whether all of these values are among the stored ones, as often, in whatever order and shape."""
    import numpy as np
    import torch

    def bits(tensors: list[Tensor]) -> Any:
        flat = [t.contiguous().view(-1).view(torch.int32) for t in tensors if t.dtype == torch.float32]
        return np.sort(torch.cat(flat).numpy()) if flat else np.zeros(0, np.int32)

    there = bits(stored)
    values, counts = np.unique(bits(trained), return_counts=True)
    found = np.searchsorted(there, values, "right") - np.searchsorted(there, values, "left")
    return bool((found >= counts).all())


def _wrong(folder: Path, what: str) -> RunError:
    return RunError(f"{folder} {what}: the adapter was not saved as it is; mend its save(), or report this")
