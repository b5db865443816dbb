"""A finished run, ready to answer: base, head and adapter put together again from the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.adapter import Adapter
from pefttool.api.errors import ModelError, Refused, UsageError
from pefttool.api.facts import Facts
from pefttool.api.options import Options
from pefttool.api.task import Task
from pefttool.api.values import Setting
from pefttool.config.registry import Registry
from pefttool.config.validation import validate
from pefttool.data.encoding import Encoded
from pefttool.files.fingerprint import weight_files
from pefttool.files.model_folder import check_folder
from pefttool.inference import reference_model
from pefttool.inference.predictor import Predictor
from pefttool.models import facts, hub, prequantized, remote_code
from pefttool.models.quantization import Quantization
from pefttool.nn import added_positions
from pefttool.runs import run_paths
from pefttool.runs.adapter_facts import ADAPTER_FACTS, MERGED, check, read
from pefttool.runs.run_folder import ADAPTER
from pefttool.setup import devices
from pefttool.setup.base import load_model
from pefttool.setup.loading import LoadedModel, Loading
from pefttool.toolkit import peft_folder

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Reloaded(Predictor):
    """A finished run's model, asked as in the run.

    `packing` and `batch_size` are what the run evaluated with; `format` is what its recipe says of its data's.
    `load_base` loads the base once more, without the adapter.
    """

    folder: Path = Path()
    packing: bool = False
    batch_size: int = 16
    format: str | None = None
    format_options: Mapping[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    load_base: Callable[[], nn.Module] | None = None

    def prepared(self, data: Encoded) -> Encoded:
        """The rows with what the base says about them, where the task wants to know: without the adapter, that is."""
        if not reference_model.asks(self.task):
            return data
        assert self.load_base is not None
        if self.adapter is None:
            raise UsageError(
                f"{self.folder} is merged, and task {self.task.name!r} compares with the base's answers: give the run"
            )
        off = self.adapter.switches_off
        model = self.model if off else self.load_base()
        with added_positions.disabled(self.adapter, model) if off else nullcontext():
            known = reference_model.ask(replace(self, model=model), data.examples, self.batch_size)
        return reference_model.carrying(data, known)

    def as_evaluated(self, examples: Sequence[Mapping[str, Any]]) -> Setting:
        """The setting in which the run evaluated: with rows packed if they were, and if this model still can."""
        if not self.packing:
            return self.setting
        packed = replace(self.setting, packing=True)
        shortest = sorted(examples, key=lambda example: int(example["length"]))
        with self.inference():
            reason = self.task.check_packing(self.model, shortest, self.processor, packed)
        return packed if reason is None else self.setting


@dataclass(frozen=True)
class Opened:
    """An adapter folder (or a merged model's), read and found fit, before any weight is loaded.

    `path` is the base's folder. `adapter` is None for a merged model, which is its own base.
    """

    folder: Path
    stored: Mapping[str, Any]
    task: Task
    adapter: Adapter | None
    quantization: Quantization | None
    choice: devices.Choice
    setting: Setting
    path: Path
    known: Facts
    trusted: bool = False

    @property
    def added_positions(self) -> int:
        return int(self.stored.get("added_positions", 0))

    def base(self, quantized: bool = True) -> LoadedModel:
        """The base without the adapter; unless `quantized`, with its original weights."""
        quantization = self.quantization if quantized else None
        known = self.known if quantized else replace(self.known, quantizer=None)
        return load_model(
            Loading(
                self.path,
                self.task,
                self.setting,
                quantization,
                known,
                self.choice.device,
                self.choice.dtype,
                self.trusted,
            )
        )

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """The modules of the plain `model` that its head's file holds: the task's, and what the base's files lacked.

        A merged model holds what was lacking itself.
        """
        own = facts.inspect(model, self.task).head_modules
        if self.adapter is None:
            return own
        inside = {name for name, _ in model.named_modules()}
        lacked = [name for name in self.stored["head_modules"] if name in inside and name not in own]
        for name in lacked:
            model.get_submodule(name).float()
        return (*own, *lacked)

    def model(self, quantized: bool = True, look: Callable[[nn.Module], object] | None = None) -> Reloaded:
        """Base, head and adapter. Raises ModelError if the adapter's files are damaged or do not fit the base.

        `look` is called with the base in its trained head, before the adapter is loaded onto it.
        """
        loaded = self.base(quantized)
        model, processor = loaded.model, loaded.processor
        heads = self.heads(model)
        if look is not None:
            load_head(model, heads, peft_folder.read_head(self.folder), self.folder)
            look(model.eval())
        if self.adapter is not None:
            model = self.adapter.load(model, self.folder)
            added_positions.install(model, self.added_positions)
        if self.adapter is not None or (self.folder / peft_folder.HEAD).is_file():
            load_head(model, heads, peft_folder.read_head(self.folder), self.folder)
        model.eval()
        stored = self.stored
        return Reloaded(
            model,
            self.task,
            processor,
            self.setting,
            self.choice,
            self.folder,
            bool(stored.get("packing", False)),
            int(stored.get("batch_size", Reloaded.batch_size)),
            stored.get("format"),
            stored.get("format_options", {}),
            self.adapter,
            lambda: self.base(quantized).model,
        )


@dataclass(frozen=True)
class Opening:
    """How somebody asks for a finished run: on which device, in which precision, whether Python code that comes with
    the base may run, and which rows it is judged by (None: the run's own held-out rows)."""

    device: str = "auto"
    dtype: str | None = None
    trust_remote_code: str | None = None
    data: str | None = None
    data_format: str | None = None

    def open(self, run: Path, registry: Registry) -> Opened:
        """As `open_folder`."""
        return open_folder(run, registry, self.device, self.dtype, None, self.trust_remote_code)


DEFAULT = Opening()


def reload(
    run: Path,
    registry: Registry,
    device: str = "auto",
    dtype: str | None = None,
    generation: dict[str, Any] | None = None,
    trust_remote_code: str | None = None,
) -> Reloaded:
    """Load the adapter of a run folder (or an adapter folder) onto its base, in the precision it was trained in.

    A merged model's folder is loaded alone. Raises UsageError if `run` is no such folder, ModelError if the base is
    missing or is not the one it was.
    """
    return open_folder(run, registry, device, dtype, generation, trust_remote_code).model()


def open_folder(
    run: Path,
    registry: Registry,
    device: str = "auto",
    dtype: str | None = None,
    generation: dict[str, Any] | None = None,
    trust_remote_code: str | None = None,
) -> Opened:
    """What is needed to load what `run` holds, without loading it. Raises as `reload` does."""
    folder = run / ADAPTER if (run / ADAPTER / ADAPTER_FACTS).is_file() else run
    stored = read(folder, run)
    merged = MERGED in stored
    task = registry.tasks[stored["task"]]
    choice = _choose(device, dtype, stored["dtype"])
    setting = Setting(
        options=_options(task.Options, stored, "task_options", folder / ADAPTER_FACTS),
        labels=tuple(stored["labels"]),
        fitted=stored.get("fitted", {}),
        sequence_length=stored["sequence_length"],
        frozen_backbone=stored["frozen_backbone"],
        generation={**stored["generation"], **(generation or {})},
        seed=stored["seed"],
    )
    if merged:
        local = _merged(folder, stored)
    else:
        local = _base(stored["base"], registry, folder.parent)
    quantization = _quantization(stored, registry, folder / ADAPTER_FACTS)
    quantization = prequantized.quantization(local.path, local.id, quantization, registry.quantizers.values())
    return Opened(
        folder,
        stored,
        task,
        None if merged else registry.adapters[stored["adapter"]],
        quantization,
        choice,
        setting,
        local.path,
        Facts(
            architecture="",
            quantizer=stored["quantize"],
            device=choice.device,
            dtype=choice.dtype,
            head_modules=tuple(stored["head_modules"]),
            output_modules=tuple(stored["output_modules"]),
        ),
        remote_code.allowed(local, trust_remote_code, registry),
    )


def _options(kind: type[Options], stored: Mapping[str, Any], key: str, path: Path) -> Options:
    complaints: list[str] = []
    options = validate(kind, stored[key] or {}, f"{path}: {key}.", complaints)
    if options is None:
        raise Refused(complaints)
    return options


def _quantization(stored: Mapping[str, Any], registry: Registry, path: Path) -> Quantization | None:
    if not stored["quantize"]:
        return None
    quantizer = registry.quantizers[stored["quantize"]]
    return Quantization(quantizer, _options(quantizer.Options, stored, "quantize_options", path))


def _choose(device: str, dtype: str | None, trained_in: str) -> devices.Choice:
    """The dtype it was trained in where this device has it; a dtype that the user asks for works or raises."""
    report = devices.report()
    if dtype is not None:
        return devices.choose(report, device, dtype)
    try:
        return devices.choose(report, device, trained_in)
    except UsageError:
        return devices.choose(report, device, "auto")


def _base(base: dict[str, Any], registry: Registry, run: Path) -> hub.LocalModel:
    local = hub.resolve(run_paths.follow(base["reference"], run), registry, weights=True)
    if weight_files(local.path) != base["sha256"]:
        raise ModelError(
            f"the base at {local.path} is not the one this adapter was trained on (its hash differs):"
            " restore it, or train again"
        )
    return local


def _merged(folder: Path, stored: Mapping[str, Any]) -> hub.LocalModel:
    check_folder(folder, str(folder))
    check(stored, {MERGED: dict}, folder / ADAPTER_FACTS)
    if weight_files(folder) != stored[MERGED].get("sha256"):
        raise ModelError(f"{folder} is not as it was merged (its hash differs): restore it, or merge again")
    return hub.LocalModel(folder, str(folder))


def load_head(model: nn.Module, heads: tuple[str, ...], stored: Mapping[str, Any], folder: Path) -> None:
    """Put the task heads' `stored` tensors (plain names) and the buffers among them into `model`, wrapped or not.

    A buffer takes the dtype that it was trained in. Raises ModelError.
    """
    import torch

    live = peft_folder.head_parameters(model, heads)
    missing = sorted(set(live) - set(stored))
    if missing:
        raise ModelError(
            f"{folder} lacks the task head's {missing[0]!r}: the folder is incomplete; copy the whole adapter folder"
        )
    buffers = {name: buffer for name, buffer in peft_folder.buffers(model).items() if name in stored}
    for name, tensor in {**live, **buffers}.items():
        if stored[name].shape != tensor.shape:
            whose = "the task head's" if name in live else "the buffer"
            found = f"{folder}: {whose} {name!r} is {list(stored[name].shape)}"
            wanted = f"expected {list(tensor.shape)} for the {ADAPTER_FACTS} beside it"
            raise ModelError(f"{found}, {wanted}: restore the adapter folder")
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(stored[name])
        for name, buffer in buffers.items():
            buffer.data = stored[name].to(buffer.device)
