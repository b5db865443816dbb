"""A quantised base whose blocks stay in a file: made once, block by block as they lie there, then only mapped.

The file holds the whole model as `Quantizer.skeleton` stores it, and is found again by the hash of what it was made
from. To make it, the quantised model has to fit in host memory once; to train from it, two blocks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.api.quantizer import Quantizer
from pefttool.api.values import Loaded
from pefttool.files import cache_folder, fingerprint
from pefttool.files.sectioned_file import PackedFile, TensorSection, Unreadable, write
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantization import Quantization
from pefttool.models.quantized import put_skeletons, stored_by
from pefttool.nn import block_streaming, parameters
from pefttool.nn.block_streaming import Slots
from pefttool.nn.tensors import replace_tensors
from pefttool.setup.loading import LoadedModel, Loading
from pefttool.setup.precision import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Of what is in the file, and where; another number makes every file anew.
FORMAT = 2
#: Gives the same model quantised and in host memory.
Resident = Callable[[], LoadedModel]


def load(loading: Loading, resident: Resident, tables_on_host: bool = False) -> tuple[LoadedModel, Slots]:
    """All but the linears of the model's blocks on the device; those are fetched by the slots.

    With `tables_on_host` embeddings and output layer are left in host memory.

    On a CPU nothing is copied but new task heads: embeddings and output layer are views of the mapped file, too.
    ModelError if the model cannot be built from its config alone.
    """
    import torch

    file = _find(loading)
    if file is None:
        file = _make(loading, resident)
    model, slots, processor = skeleton(loading, json.loads(file.metadata["plain"]))
    _fill(model, file, loading.device, tuple(f"{name}." for name in loading.facts.head_modules), tables_on_host)
    mapped = block_streaming.Mapped(file, slots.sections)
    slots.lane = block_streaming.lane(mapped, torch.device(loading.device), slots.most)
    return LoadedModel(model.eval(), processor, tuple(json.loads(file.metadata["missing"]))), slots


def _quantization(loading: Loading) -> Quantization:
    assert loading.quantization is not None, "only quantised models are streamed"
    return loading.quantization


def file_for(loading: Loading) -> Path:
    """Where the file of this model lies, or would lie: a hash of all that its bytes depend on. It is never stale."""
    quantization, task, setting = _quantization(loading), loading.task, loading.setting
    options = setting.options
    try:
        code = fingerprint.code([quantization.quantizer])
    except fingerprint.Unknowable as error:
        raise ModelError(
            f"memory.stream: {quantization.name!r} has no lasting form ({error}); drop memory.stream"
        ) from error
    del code["pefttool"]  # FORMAT stands for it: not every change of ours is worth quantising anew
    key = fingerprint.key(
        format=FORMAT,
        code=code,
        weights=fingerprint.weight_files(loading.path),
        quantizer=[*quantization.described(), loading.dtype],
        # What a task may build its model by.
        task=[
            task.name,
            options and options.model_dump(mode="json"),
            setting.labels,
            setting.frozen_backbone,
            dict(setting.fitted),
        ],
    )
    return cache_folder.cache_folder() / "streamed" / f"{key[:32]}.safetensors"


def _find(loading: Loading) -> PackedFile | None:
    """The file, if it is there and whole. One with random weights in it (a new head's) counts for its seed only."""
    try:
        file = PackedFile(file_for(loading))
    except (FileNotFoundError, Unreadable):
        return None
    return file if file.metadata.get("seed") in ("", str(loading.setting.seed)) else None


def _make(loading: Loading, resident: Resident) -> PackedFile:
    found, known = resident(), loading.facts
    real, missing = found.model, found.missing
    # What the folder lacks was initialised, and not quantised.
    plain = [name for name in known.linear_modules if parameters.is_plain(real.get_submodule(name))]
    tensors = _tensors(
        real, _quantization(loading).quantizer, [name for name in known.linear_modules if name not in plain]
    )
    _, slots, _ = skeleton(loading, plain)
    fetched = {name for section in slots.sections for name in section.entries}
    rest = TensorSection.of({name: tensor for name, tensor in tensors.items() if name not in fetched})
    sections = [rest, *slots.sections]
    target = file_for(loading)
    _require_space(target, sum(section.size for section in sections))
    seed = str(loading.setting.seed) if missing or known.head_modules else ""
    metadata = {"seed": seed, "plain": json.dumps(plain), "missing": json.dumps(missing)}
    try:
        write(target, sections, tensors.__getitem__, metadata)
        return PackedFile(target)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"memory.stream: {target} cannot be written: {error}; set PEFTTOOL_CACHE elsewhere") from error


def _require_space(target: Path, needed: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ModelError(
            f"memory.stream: the quantised model takes {needed} bytes and {target.parent} has {free} free: make room,"
            f" or set {cache_folder.CACHE} to another disk"
        )


def _tensors(real: nn.Module, quantizer: Quantizer, quantised: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor of a quantised model, by the names of the skeleton's."""
    stored = {
        f"{name}.{part}": tensor
        for name in quantised
        for part, tensor in quantizer.stored(real.get_submodule(name)).items()
    }
    inside = {f"{name}.weight" for name in quantised}
    others = {n: t for n, t in (*real.named_parameters(), *real.named_buffers()) if n not in inside}
    return {**others, **stored}


def skeleton(loading: Loading, plain: Sequence[str] = ()) -> tuple[nn.Module, Slots, Any]:
    """(model without any weight, its slots, processor); the linears called `plain` are not quantised."""
    quantization, known = _quantization(loading), loading.facts
    source = LocalPretrained(loading.path, {"dtype": torch_dtype(loading.dtype)}, abstract=True)
    loaded: Loaded = loading.task.load(source, loading.setting)
    quantizer = quantization.quantizer
    names = [n for n in stored_by(quantizer, loaded.model, known.linear_modules) if n not in plain]
    put_skeletons(loaded.model, quantization, names)
    said = quantization.load_arguments(known).get("quantization_config")
    if said is not None:  # as a resident model says it: loaders and cards that are written of the model need it
        config: Any = loaded.model.config
        config.quantization_config = said
    return loaded.model, block_streaming.attach(loaded.model, known.layers, names, quantizer), loaded.processor


def _fill(model: nn.Module, file: PackedFile, device: str, heads: tuple[str, ...], tables_on_host: bool) -> None:
    """Give the model what the file holds of it; what is fetched stays as empty as it is."""
    import torch

    from pefttool.nn import embedding_offload

    tables = embedding_offload.tables(model) if tables_on_host else ()
    stay = {id(parameter) for table in tables for parameter in table.parameters()}

    def fill(name: str, tensor: Tensor) -> Tensor:
        if tensor.numel() == 0:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        stored = file.tensor(name)
        if stored.shape != tensor.shape:
            raise KeyError(f"{name} of {tuple(tensor.shape)}")
        if heads and name.startswith(heads):
            stored = stored.clone()
        return stored if id(tensor) in stay else stored.to(device)

    try:
        replace_tensors(model, fill)
    except KeyError as error:
        # A tensor that a module computes and keeps aside, neither parameter nor buffer; or the task has changed.
        raise ModelError(
            f"memory.stream: {type(model).__name__} cannot be built from {file.path}, which has no {error}; remove that"
            " file, and if this comes again drop memory.stream"
        ) from error
