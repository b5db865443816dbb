"""Merging one linear layer at a time, from the base's files into new ones: in memory is the layer in hand.

The model is built without weights, for its names and shapes. A layer is read, quantised and dequantised as it was in
training, given the adapter's own tensors for it (`Adapter.load` and `Adapter.merge`, on a model of this one layer),
rounded once, and written. Everything else is copied, tensor by tensor.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.adapter import Adapter
from pefttool.export.reload import Opened
from pefttool.files import safetensors_file
from pefttool.files.model_folder import INDEX, SINGLE, read_index
from pefttool.files.safetensors_file import Reader
from pefttool.models import facts
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantized import stored_by
from pefttool.setup.precision import torch_dtype
from pefttool.toolkit import peft_folder
from pefttool.toolkit.model_parts import transformers_part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where everything is: what `find` found out.

    part      the transformers model (without data) that is written; its names are those of `places` and `heads`
    prefix    what stands before them in the whole model's names
    files     names of the files that are written, and of the tensors in each
    places    the base's tensor for each name
    heads     trained tensors of the task head, by name; `outside` those that are no part of the transformers model
    adapted   linear layers that the adapter changes (the whole model's names), and the names of its tensors for each
    train_as  what a base's weight was in training: by layer, its weight to the weight that was multiplied by
    """

    part: Any
    prefix: str
    files: Mapping[str, tuple[str, ...]]
    places: Mapping[str, tuple[Reader, str]]
    heads: Mapping[str, Tensor]
    outside: Mapping[str, Tensor]
    adapted: Mapping[str, tuple[str, ...]]
    train_as: Callable[[str, Tensor], Tensor]
    adapter: Adapter
    folder: Path


def find(opened: Opened, quantized: bool) -> Layout | str:
    """How this adapter is merged in parts, or why it cannot be."""
    adapter, folder = opened.adapter, opened.folder
    assert adapter is not None
    if not adapter.merges_in_parts or not (folder / peft_folder.CONFIG).is_file():
        return f"adapter {adapter.name!r} merges whole models"
    if opened.quantization is not None and opened.quantization.stored_already:
        return f"its base is stored as {opened.quantization.name}"
    if (folder / peft_folder.HEAD).is_file():
        return "running statistics of the base are saved beside the adapter"
    source = LocalPretrained(opened.path, {"dtype": torch_dtype(opened.choice.dtype)}, abstract=True)
    model = opened.task.load(source, opened.setting).model
    part = transformers_part(model)
    if part is None:
        return f"{type(model).__name__} holds no transformers model"
    prefix = "" if part is model else next(f"{name}." for name, module in model.named_modules() if module is part)
    heads = peft_folder.read_head(folder)
    inside = {n.removeprefix(prefix): t for n, t in heads.items() if n.startswith(prefix)}
    outside = {n: t for n, t in heads.items() if not n.startswith(prefix)}
    state = part.state_dict(keep_vars=True)
    readers = _readers(opened.path)
    places, files = _places(part, state, readers)
    lacking = _lacking(state, {*places, *inside})
    lacking += [n for n, _ in model.named_parameters() if not n.startswith(prefix) and n not in outside]
    if lacking:
        return f"the base's files have no tensor called {lacking[0]!r}"
    last = next(reversed(files))
    files[last] += tuple(name for name in inside if name not in places)
    adapted = _adapted(model, set(peft_folder.read_tensors(folder / peft_folder.WEIGHTS)), heads)
    if isinstance(adapted, str):
        return adapted
    strange = [n for n in adapted if f"{n}.weight".removeprefix(prefix) not in places or not n.startswith(prefix)]
    if strange:
        return f"{strange[0]!r} is no layer of the base's files"
    known = facts.inspect(model, opened.task)
    quantization = opened.quantization if quantized else None
    stored_as: frozenset[str] = frozenset()
    if quantization is not None:
        stored_as = frozenset(stored_by(quantization.quantizer, model, known.linear_modules))
    as_trained = _as_trained(opened, stored_as) if quantized else lambda name, weight: weight
    return Layout(part, prefix, files, places, inside, outside, adapted, as_trained, adapter, folder)


def _readers(path: Path) -> dict[str, Reader]:
    names = [SINGLE] if (path / SINGLE).is_file() else sorted(read_index(path / INDEX, str(path)))
    return {name: Reader(path / name) for name in names}


def _places(
    part: Any, state: Mapping[str, Tensor], readers: Mapping[str, Reader]
) -> tuple[dict[str, tuple[Reader, str]], dict[str, tuple[str, ...]]]:
    """The base's tensor for each of the model's names, and the names by file. Some bases are saved without the prefix
    that the model with a head has, or with one that the bare model has not; what the model has no place for is left."""
    prefix = f"{part.base_model_prefix}."
    places: dict[str, tuple[Reader, str]] = {}
    files: dict[str, tuple[str, ...]] = {}
    for file, reader in readers.items():
        names = []
        for stored, (_, shape) in reader.shapes.items():
            for name in (stored, prefix + stored, stored.removeprefix(prefix)):
                if name in state and name not in places and tuple(state[name].shape) == shape:
                    places[name] = (reader, stored)
                    names.append(name)
                    break
        files[file] = tuple(names)
    return places, files


def _lacking(state: Mapping[str, Tensor], known: set[str]) -> list[str]:
    """Names without a tensor, where nothing that they share memory with has one."""
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    return [names[0] for names in tied.values() if not known & set(names)]


def _adapted(model: nn.Module, tensors: set[str], heads: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]] | str:
    """The adapter's tensors by the linear layer that they belong to, or why that cannot be said."""
    from torch import nn

    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, list[str]] = {}
    for tensor in sorted(tensors):
        name = tensor.removeprefix(peft_folder.TUNER_ROOT)
        if name in heads:
            continue
        words = name.split(".")
        owner = next((o for i in range(len(words), 0, -1) if (o := ".".join(words[:i])) in linears), None)
        if owner is None:
            return f"the adapter's {tensor!r} belongs to no linear layer"
        found.setdefault(owner, []).append(tensor)
    return {owner: tuple(names) for owner, names in found.items()}


def _as_trained(opened: Opened, quantised: frozenset[str]) -> Callable[[str, Tensor], Tensor]:
    quantization, choice = opened.quantization, opened.choice

    def weight_of(name: str, weight: Tensor) -> Tensor:
        weight = weight.to(torch_dtype(choice.dtype))
        if name not in quantised:
            return weight
        assert quantization is not None
        return quantization.round_trip(weight.to(choice.device)).cpu()

    return weight_of


@dataclass
class Writer:
    """Writes the merged model of a layout as `dtype` into `aside`."""

    layout: Layout
    dtype: torch.dtype
    aside: Path
    _ready: dict[str, Tensor] = field(default_factory=dict)

    def write(self) -> None:
        """Weights, index and configuration. Raises OSError."""
        index: dict[str, str] = {}
        size = 0
        for file, names in self.layout.files.items():
            shapes = {name: self._shape(name) for name in names}
            safetensors_file.write(self.aside / file, shapes, self._tensor)
            index |= dict.fromkeys(names, file)
            size += sum(map(safetensors_file.size, shapes.values()))
        if len(self.layout.files) > 1:
            document = {"metadata": {"total_size": size}, "weight_map": index}
            (self.aside / INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if self.layout.outside:
            peft_folder.write_tensors(self.aside / peft_folder.HEAD, self.layout.outside)
        part = self.layout.part
        part.config.dtype, part.config.architectures = self.dtype, [type(part).__name__]
        part.config.save_pretrained(self.aside)

    def _shape(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        if name in self.layout.heads:
            dtype, shape = self.layout.heads[name].dtype, tuple(self.layout.heads[name].shape)
        else:
            reader, stored = self.layout.places[name]
            dtype, shape = reader.shapes[stored]
        return self.dtype if dtype.is_floating_point else dtype, shape

    def _tensor(self, name: str) -> Tensor:
        """What is written under this name."""
        if name in self._ready:
            return self._ready.pop(name)
        if name in self.layout.heads:
            return self._rounded(self.layout.heads[name])
        owner = f"{self.layout.prefix}{name}".rpartition(".")[0]
        if owner in self.layout.adapted:
            merged = self._merged(owner)
            wanted = merged.pop(name)
            self._ready |= merged  # its bias, or its weight: the next that will be asked for
            return wanted
        return self._rounded(self._trained(name))

    def _trained(self, name: str) -> Tensor:
        """The base's tensor as it was in training."""
        reader, stored = self.layout.places[name]
        tensor = reader.tensor(stored)
        owner, _, kind = f"{self.layout.prefix}{name}".rpartition(".")
        return self.layout.train_as(owner if kind == "weight" else "", tensor) if tensor.is_floating_point() else tensor

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _merged(self, owner: str) -> dict[str, Tensor]:
        """The parameters of an adapted layer, merged in float32 by the adapter itself."""
        from torch import nn

        inner = owner.removeprefix(self.layout.prefix)
        names = [f"{inner}.{kind}" for kind in ("weight", "bias") if f"{inner}.{kind}" in self.layout.places]
        weight = self._trained(names[0]).float()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=len(names) > 1, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if len(names) > 1:
            linear.bias = nn.Parameter(self._trained(names[1]).float(), requires_grad=False)
        own = Reader(self.layout.folder / peft_folder.WEIGHTS)
        with tempfile.TemporaryDirectory(prefix="pefttool-merge-") as folder:
            tensors = {tensor: own.tensor(tensor) for tensor in self.layout.adapted[owner]}
            peft_folder.cut(self.layout.folder, Path(folder), owner, tensors)
            loaded = self.layout.adapter.load(_alone(owner, linear), Path(folder))
            merged: Any = self.layout.adapter.merge(loaded).get_submodule(owner)
        return {name: self._rounded(getattr(merged, name.rpartition(".")[2]).detach()) for name in names}


def _alone(name: str, module: nn.Module) -> nn.Module:
    """A model that holds `module` under this name, and nothing else."""
    from torch import nn

    *above, last = name.split(".")
    model = inner = nn.Module()
    for word in above:
        child = nn.Module()
        inner.add_module(word, child)
        inner = child
    inner.add_module(last, module)
    return model
