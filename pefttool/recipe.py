"""Stage 1: YAML and command line -> a frozen Recipe. All mistakes at once, in the user's own key names."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pefttool.errors import PluginError, Refused, UsageError, suggest
from pefttool.interfaces import Options
from pefttool.registry import Kind, Registry
from pefttool.settings import (
    RESERVED,
    DataSettings,
    Document,
    GenerationSettings,
    MemorySettings,
    TrainSettings,
)

FIRST_RUN = Path(__file__).with_name("first_run.yaml")


@dataclass(frozen=True)
class Recipe:
    """A complete, validated recipe. `given` is what the user wrote, before any default was filled in.

    `task` and `task_options` are None until the task is known (it may be recognised from the data).
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
    quantize: str | None = None
    task: str | None = None
    task_options: Options | None = None
    out: str | None = None

    def as_document(self) -> dict[str, Any]:
        """The resolved recipe as plain values: `pefttool run` on it repeats the run (into a new folder)."""
        task = {} if self.task is None or self.task_options is None else {"name": self.task, **_dump(self.task_options)}
        return {
            "model": self.model,
            "quantize": self.quantize,
            "adapter": {"name": self.adapter, **_dump(self.adapter_options)},
            "task": task,
            "data": _dump(self.data),
            "train": _dump(self.train),
            "memory": _dump(self.memory),
            "generation": _dump(self.generation),
            "device": self.device,
            "dtype": self.dtype,
        }

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_document(), sort_keys=False, allow_unicode=True)


def _dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def read(path: Path) -> dict[str, Any]:
    """A recipe file as a nested dictionary. Raises UsageError with the file and the line."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"recipe {path}{line} is not YAML: {reason}; mend that line") from error
    except RecursionError as error:
        raise UsageError(f"recipe {path} is nested too deeply; a recipe has two levels") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"recipe {path}:1 is a {type(document).__name__}; expected keys such as `adapter:` and `data:`")
    return document


def combine(document: Mapping[str, Any], flags: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The recipe file, then flags (`adapter.name`: value), then `-o key.path=value` strings over both."""
    result = copy.deepcopy(dict(document))
    complaints: list[str] = []
    for key in ("adapter", "task"):
        if isinstance(result.get(key), str):  # `adapter: lora` is short for `adapter: {name: lora}`
            result[key] = {"name": result[key]}
    for key, value in flags.items():
        if value is not None:
            _put(result, key, value, f"--{key.split('.')[0]}", complaints)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            complaints.append(f"-o {override}: expected key.path=value, such as -o train.epochs=2")
            continue
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError):
            complaints.append(f"-o {override}: the value {text!r} is not YAML; quote it, such as -o '{key}=\"text\"'")
            continue
        _put(result, key.strip(), _number(value), f"-o {override}", complaints)
    if complaints:
        raise Refused(complaints)
    return result


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def _put(document: dict[str, Any], key: str, value: Any, origin: str, complaints: list[str]) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = document.setdefault(parent, {})
        if not isinstance(inner, dict):
            complaints.append(f"{origin}: {parent!r} is {inner!r} in the recipe, not a section; remove it there")
            return
        document = inner
    document[last] = value


def resolve(given: Mapping[str, Any], registry: Registry, task: str | None = None) -> Recipe:
    """Validate what the user wrote and fill in the defaults of the core, the task and the adapter, in this order.

    `task` is the name recognised from the data, where the user gave none. Raises Refused with every mistake.
    """
    complaints: list[str] = []
    document = {str(k): v for k, v in copy.deepcopy(dict(given)).items()}
    if not document.get("model") and not _get(document, "data.train"):
        _fill_example(document, registry, complaints)
    chosen_task = _chosen(document, "task", registry.tasks, complaints)
    if chosen_task is None and task is not None:
        chosen_task = task
    chosen_adapter = _chosen(document, "adapter", registry.adapters, complaints)
    if chosen_adapter is None and not any(c.startswith("adapter") for c in complaints):
        complaints.append(f"adapter: none given: use --adapter NAME {suggest('', registry.adapters)}")
    if document.get("quantize") is not None:
        _lookup(registry.quantizers, document["quantize"], "quantize", complaints)

    train_given = document.get("train")
    _layer_defaults(document, registry, chosen_task, chosen_adapter)
    core = _validate(Document, document, "", complaints)
    _check_reserved(core, complaints)
    adapter_options = task_options = None
    if chosen_adapter is not None:
        adapter_options = _section_options(registry.adapters[chosen_adapter].Options, document, "adapter", complaints)
    if chosen_task is not None:
        task_options = _section_options(registry.tasks[chosen_task].Options, document, "task", complaints)
    elif set(_mapping(document.get("task"))) - {"name"} and not any(c.startswith("task") for c in complaints):
        complaints.append("task: options are given without task.name: add --task NAME")
    if core is not None:
        if not core.model:
            complaints.append("model: none given: use --model FOLDER, ORG/NAME[@REVISION], or SOURCE:REFERENCE")
        if not core.data.train:
            complaints.append("data.train: none given: use --data FILE or FOLDER")
    if isinstance(train_given, Mapping):
        _check_steps(train_given, complaints)
    if complaints or core is None or adapter_options is None:
        raise Refused(dict.fromkeys(complaints))
    assert core.model is not None and chosen_adapter is not None
    return Recipe(
        given=given,
        model=core.model,
        quantize=core.quantize,
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
        out=core.out,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _get(document: Mapping[str, Any], key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = _mapping(value).get(part)
    return value


def _fill_example(document: dict[str, Any], registry: Registry, complaints: list[str]) -> None:
    """Neither model nor data: the example of the task the user named, or of the first run."""
    name = _get(document, "task.name")
    first_run = read(FIRST_RUN)
    name = name if isinstance(name, str) else first_run["task"]["name"]
    if name not in registry.tasks:
        if _get(document, "task.name") is None:
            complaints.append(f"model and data: none given, and the built-in example needs the task {name!r}, whose plugin is not loaded")
        return
    example = registry.tasks[name].example
    if not example:
        complaints.append(f"model and data: none given, and task {name!r} has no built-in example: use --model and --data")
        return
    _merge_missing(document, {"task": {"name": name}, **copy.deepcopy(dict(example))})


def _merge_missing(document: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            _merge_missing(document[key], value)
        elif document.get(key) is None and key not in document:
            document[key] = value


def _chosen(document: Mapping[str, Any], section: str, kind: Kind[Any], complaints: list[str]) -> str | None:
    name = _get(document, f"{section}.name")
    return None if name is None else _lookup(kind, name, f"{section}.name", complaints)


def _lookup(kind: Kind[Any], name: Any, key: str, complaints: list[str]) -> str | None:
    if not isinstance(name, str):
        complaints.append(f"{key}: {name!r} is not a name: {suggest('', kind)}")
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
        defaults.update(registry.adapters[adapter].defaults(registry.tasks[task]))
    document["train"] = {**defaults, **{k: v for k, v in (train or {}).items()}}


def _section_options(options: type[Options], document: Mapping[str, Any], section: str, complaints: list[str]) -> Options | None:
    values = {k: v for k, v in _mapping(document.get(section)).items() if k != "name"}
    return _validate(options, values, f"{section}.", complaints)


def _validate(model: type[Any], values: Mapping[str, Any], prefix: str, complaints: list[str]) -> Any:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        for item in error.errors():
            complaints.append(_complaint(model, item, prefix))
        return None


def _complaint(model: type[BaseModel], item: Any, prefix: str) -> str:
    path = [str(part) for part in item["loc"]]
    key = prefix + ".".join(path)
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        return f"{key}: unknown key: {suggest(path[-1], fields)}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not path:
        return f"{prefix.rstrip('.') or 'recipe'}: {message}"
    given = f"{item['input']!r}"
    return f"{key}: {given if len(given) < 80 else given[:77] + '...'} is not allowed: expected {message}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _check_reserved(core: Document | None, complaints: list[str]) -> None:
    default = Document()
    for key in RESERVED:
        section, name = key.split(".")
        if core is not None:
            value = getattr(getattr(core, section), name)
            if value != getattr(getattr(default, section), name):
                complaints.append(f"{key}: {value!r} is not possible yet: this key is reserved; remove it")


def _check_steps(train: Mapping[str, Any], complaints: list[str]) -> None:
    if train.get("patience") is not None and train.get("keep_best") is False:
        complaints.append("train.patience: stops at the best evaluation, which train.keep_best: false forgets; drop one")


def schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of a recipe, with the options of every installed adapter and task, for editors."""
    document = Document.model_json_schema()
    for section, kind in (("adapter", registry.adapters), ("task", registry.tasks)):
        choices = []
        for name in kind:
            options = kind[name].Options.model_json_schema()
            document.setdefault("$defs", {}).update(options.pop("$defs", {}))
            options["title"] = f"{section} {name}"
            options["properties"] = {"name": {"const": name}, **options.get("properties", {})}
            options["required"] = ["name", *options.get("required", [])]
            choices.append(options)
        described = document["properties"][section]
        document["properties"][section] = {
            "description": described["description"],
            "oneOf": [*choices, {"enum": list(kind), "description": "a name alone: every option at its default"}],
        }
    quantize = document["properties"]["quantize"]
    quantize["anyOf"] = [{"enum": list(registry.quantizers)}, {"type": "null"}]
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = "pefttool recipe"
    return document
