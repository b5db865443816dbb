"""Stage 1: YAML and command line -> a frozen Recipe. All mistakes at once, in the user's own key names."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pefttool.api.errors import PluginError, Refused, UsageError, suggest
from pefttool.api.options import Options
from pefttool.config import typed_text, yaml_text
from pefttool.config.recipe_file import read
from pefttool.config.registry import Kind, Registry
from pefttool.config.settings import (
    DataSettings,
    Document,
    GenerationSettings,
    MemorySettings,
    TrainSettings,
)
from pefttool.config.validation import short, validate

FIRST_RUN = Path(__file__).with_name("first_run.yaml")
#: Sections of a plugin's own: a name alone stands for `{name: NAME}`.
NAMED = ("adapter", "task", "quantize")
#: What people call a choice of several keys, and what it is here.
ALSO_CALLED = {"qlora": "is LoRA beside weights in 4 bits: use --adapter lora --quantize nf4"}
#: Nothing under these keys is as if the key were absent. `quantize: null` says something: that of the example is off.
SECTIONS = ("adapter", "task", "data", "train", "memory", "generation")


@dataclass(frozen=True)
class Recipe:
    """A complete, validated recipe. `given` is what the user wrote, before any default was filled in.

    `task` and `task_options` are None until the task is known (it may be recognised from the data); `quantize` and
    `quantize_options` are None where the weights stay as they are.
    """

    given: Mapping[str, Any]
    model: str
    adapter: str
    adapter_options: Options
    data: DataSettings
    train: TrainSettings
    memory: MemorySettings
    generation: GenerationSettings
    device: str
    dtype: str
    check: str = "process"
    quantize: str | None = None
    quantize_options: Options | None = None
    task: str | None = None
    task_options: Options | None = None
    out: str | None = None
    trust_remote_code: str | None = None

    def as_document(self) -> dict[str, Any]:
        """The resolved recipe as plain values: `pefttool run` on it repeats the run (into a new folder).

        While the task is unknown, `train` holds only what the user gave: the task's defaults must not be shut out.
        """
        task = {} if self.task is None or self.task_options is None else {"name": self.task, **_dump(self.task_options)}
        quantize = None
        if self.quantize is not None and self.quantize_options is not None:
            quantize = {"name": self.quantize, **_dump(self.quantize_options)}
        return {
            "model": self.model,
            "trust_remote_code": self.trust_remote_code,
            "quantize": quantize,
            "adapter": {"name": self.adapter, **_dump(self.adapter_options)},
            "task": task,
            "data": _dump(self.data),
            "train": self.train.model_dump(mode="json", exclude_unset=self.task is None),
            "memory": _dump(self.memory),
            "generation": _dump(self.generation),
            "device": self.device,
            "dtype": self.dtype,
            "check": self.check,
        }

    def as_yaml(self) -> str:
        return yaml_text.dump(self.as_document())


def _dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def combine(document: Mapping[str, Any], flags: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The recipe file, then flags (`adapter.name`: value), then `-o key.path=value` strings over both."""
    result, typed = _spelt_out(document), typed_text.of(document)
    complaints: list[str] = []
    for key, value in flags.items():
        if value is not None:
            typed.pop(key, None)
            _put(result, key, value, f"{key} on the command line", complaints)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            complaints.append(f"-o {override}: expected key.path=value, such as -o train.epochs=2")
            continue
        try:
            value = yaml_text.load(text)
        except (yaml.YAMLError, RecursionError):
            complaints.append(f"-o {override}: the value {text!r} is not YAML; quote it, such as -o '{key}=\"text\"'")
            continue
        typed[key.strip()] = text
        _put(result, key.strip(), value, f"-o {override}", complaints)
    if complaints:
        raise Refused(complaints)
    return typed_text.Given(result, typed)


def _spelt_out(document: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy in which `adapter: lora` is `adapter: {name: lora}`, and a section without keys (`train:`) is absent."""
    result = {str(key): value for key, value in copy.deepcopy(dict(document)).items()}
    for key in NAMED:
        if isinstance(result.get(key), str):
            result[key] = {"name": result[key]}
    if result.get("quantize") is not None and not isinstance(result["quantize"], Mapping):
        result["quantize"] = {"name": result["quantize"]}  # it is none, and the complaint about it lists the names
    for key in SECTIONS:
        if key in result and result[key] is None:
            del result[key]
    return result


def _put(document: dict[str, Any], key: str, value: Any, origin: str, complaints: list[str]) -> None:
    if key in NAMED and isinstance(value, str):
        key = f"{key}.name"
    *parents, last = key.split(".")
    for parent in parents:
        if parent == "quantize" and document.get(parent, {}) is None:
            document[parent] = {"name": None}  # as `quantize: null` said, unless this is the name
        inner = document.setdefault(parent, {})
        if not isinstance(inner, dict):
            complaints.append(f"{origin}: {parent!r} is {short(inner)} in the recipe, not a section; remove it there")
            return
        document = inner
    document[last] = value


def resolve(
    given: Mapping[str, Any], registry: Registry, task: str | None = None, data_optional: bool = False
) -> Recipe:
    """Validate what the user wrote and fill in the defaults of the core, the task and the adapter, in this order.

    `task` is the name recognised from the data, where the user gave none; a model can be planned for without data.
    Raises Refused with every mistake.
    """
    complaints: list[str] = []
    document = _spelt_out(given)
    explained = False
    if document.get("model") in (None, "") and _get(document, "data.train") in (None, ""):
        explained = not _fill_example(document, registry, complaints)
    chosen_task = _chosen(document, "task", registry.tasks, complaints)
    if chosen_task is None and task is not None:
        chosen_task = task
    chosen_adapter = _chosen(document, "adapter", registry.adapters, complaints)
    if chosen_adapter is None and not any(c.startswith("adapter") for c in complaints):
        complaints.append(f"adapter: none given: use --adapter NAME {suggest('', registry.adapters)}")
    chosen_quantizer = _chosen(document, "quantize", registry.quantizers, complaints)

    chosen = {"adapter": chosen_adapter, "task": chosen_task, "quantize": chosen_quantizer}
    typed_text.restore(document, typed_text.of(given), _models(document, registry, chosen))
    train_given = document.get("train")
    told_later = data_optional and _get(document, "data.train") in (None, "")  # by the model's config
    _layer_defaults(document, registry, chosen_task, chosen_adapter)
    core = validate(Document, document, "", complaints)
    adapter_options = task_options = quantize_options = None
    if chosen_adapter is not None:
        adapter_options = _section_options(registry.adapters[chosen_adapter].Options, document, "adapter", complaints)
    if chosen_task is not None:
        task_options = _section_options(registry.tasks[chosen_task].Options, document, "task", complaints)
    elif (
        set(_mapping(document.get("task"))) - {"name"}
        and not told_later
        and not any(c.startswith("task") for c in complaints)
    ):
        complaints.append("task: options are given without task.name: add --task NAME")
    if chosen_quantizer is not None:
        kind = registry.quantizers[chosen_quantizer].Options
        quantize_options = _section_options(kind, document, "quantize", complaints)
    elif set(_mapping(document.get("quantize"))) - {"name"} and not any(c.startswith("quantize") for c in complaints):
        complaints.append(
            f"quantize: options are given without quantize.name: add --quantize NAME {suggest('', registry.quantizers)}"
        )
    if document.get("model") in (None, "") and not explained:
        complaints.append("model: none given: use --model FOLDER, ORG/NAME[@REVISION], or SOURCE:REFERENCE")
    if _get(document, "data.train") in (None, "") and not explained and not data_optional:
        complaints.append("data.train: none given: use --data FILE or FOLDER")
    _check_together(core, train_given, registry, complaints)
    if complaints or core is None or adapter_options is None:
        raise Refused(dict.fromkeys(complaints))
    assert core.model is not None and chosen_adapter is not None
    return Recipe(
        given=given,
        model=core.model,
        quantize=chosen_quantizer,
        quantize_options=quantize_options,
        adapter=chosen_adapter,
        adapter_options=adapter_options,
        task=chosen_task,
        task_options=task_options,
        data=core.data,
        train=core.train,
        memory=core.memory,
        generation=core.generation,
        device=core.device,
        dtype=core.dtype,
        check=core.check,
        out=core.out,
        trust_remote_code=core.trust_remote_code,
    )


def _models(
    document: Mapping[str, Any], registry: Registry, chosen: Mapping[str, str | None]
) -> dict[str, type[BaseModel]]:
    """What describes the options of plugins, as far as they are `chosen` by name.

    The core's own keys are what YAML makes of them: `trust_remote_code=true` names no repository.
    """
    models: dict[str, type[BaseModel]] = {}
    data_format = _get(document, "data.format")
    for section, kind, name in (
        ("adapter", registry.adapters, chosen["adapter"]),
        ("task", registry.tasks, chosen["task"]),
        ("quantize", registry.quantizers, chosen["quantize"]),
        ("data.format_options", registry.formats, data_format if data_format in list(registry.formats) else None),
    ):
        if name is not None:
            models[section] = kind[name].Options
    return models


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _get(document: Mapping[str, Any], key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = _mapping(value).get(part)
    return value


def _fill_example(document: dict[str, Any], registry: Registry, complaints: list[str]) -> bool:
    """Neither model nor data: the example of the task the user named, or of the first run. False: there is none."""
    named = _get(document, "task.name")
    name = named if isinstance(named, str) else read(FIRST_RUN)["task"]["name"]
    if name not in registry.tasks:
        if named is None:
            complaints.append(
                f"model and data: none given, and the built-in example needs the task {name!r}, whose plugin"
                " is not loaded: use --model and --data"
            )
        return False
    example = registry.tasks[name].example
    if not example.get("model") or not _get(example, "data.train"):
        complaints.append(
            f"model and data: none given, and task {name!r} has no built-in example: use --model and --data"
        )
        return False
    document.pop("model", None)
    if isinstance(document.get("data"), dict):
        document["data"].pop("train", None)
    filled = {"task": {"name": name}, **_spelt_out(example)}
    adapter = _get(document, "adapter.name")
    if isinstance(adapter, str) and adapter in registry.adapters and registry.adapters[adapter].trains_base:
        filled.pop("quantize", None)  # it would freeze what this adapter trains
    _merge_missing(document, filled)
    return True


def _merge_missing(document: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            _merge_missing(document[key], value)
        elif key not in document:  # an explicit null stays: `quantize: null` switches the example's off
            document[key] = value


def _chosen(document: Mapping[str, Any], section: str, kind: Kind[Any], complaints: list[str]) -> str | None:
    name = _get(document, f"{section}.name")
    return None if name is None else _lookup(kind, name, f"{section}.name", complaints)


def _lookup(kind: Kind[Any], name: Any, key: str, complaints: list[str]) -> str | None:
    if not isinstance(name, str):
        complaints.append(f"{key}: {short(name)} is not a name: {suggest('', kind)}")
        return None
    if name in ALSO_CALLED and name not in kind:
        complaints.append(f"{key}: {name!r} {ALSO_CALLED[name]}")
        return None
    try:
        kind[name]
    except (UsageError, PluginError) as error:
        complaints.append(f"{key}: {error}")
        return None
    return name


def _layer_defaults(document: dict[str, Any], registry: Registry, task: str | None, adapter: str | None) -> None:
    train = document.get("train")
    if task is None or not (train is None or isinstance(train, Mapping)):
        return
    defaults = dict(registry.tasks[task].defaults())
    if adapter is not None:
        rates = registry.tasks[task].rates
        for key, value in registry.adapters[adapter].defaults(registry.tasks[task]).items():
            defaults[key] = value * rates[key] if key in rates else value
    document["train"] = {**defaults, **{k: v for k, v in (train or {}).items()}}
    generation = document.get("generation")
    if registry.tasks[task].generation and (generation is None or isinstance(generation, Mapping)):
        document["generation"] = {**registry.tasks[task].generation, **(generation or {})}


def _section_options(
    options: type[Options], document: Mapping[str, Any], section: str, complaints: list[str]
) -> Options | None:
    values = {k: v for k, v in _mapping(document.get(section)).items() if k != "name"}
    return validate(options, values, f"{section}.", complaints)


def _check_together(core: Document | None, train_given: Any, registry: Registry, complaints: list[str]) -> None:
    """What only several keys together say: options belong to a format; patience forgets nothing."""
    if isinstance(train_given, Mapping):
        _check_steps(train_given, complaints)
    if core is None:
        return
    name, options = core.data.format, core.data.format_options
    if name is not None and _lookup(registry.formats, name, "data.format", complaints):
        validate(registry.formats[name].Options, options, "data.format_options.", complaints)
    elif name is None and options:
        complaints.append("data.format_options: options are given without data.format: add -o data.format=NAME")


def _check_steps(train: Mapping[str, Any], complaints: list[str]) -> None:
    if train.get("patience") is not None and train.get("keep_best") is False:
        complaints.append(
            "train.patience: stops at the best evaluation, which train.keep_best: false forgets; drop one"
        )
