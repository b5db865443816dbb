"""Code that comes with a model. None of it runs, unless the user names the model and the revision that was read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pefttool.api.errors import ModelError
from pefttool.config.registry import Registry
from pefttool.files.model_folder import CONFIG
from pefttool.models import hub

FLAG = "--trust-remote-code"
#: Files whose `auto_map` names classes in the folder's own code, beside config.json.
PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
#: Ends of the keys of a config by which transformers chooses its implementation of attention, or of experts.
KERNELS = ("attn_implementation", "experts_implementation")
#: Keys by which such a file names a class that transformers may have itself.
CLASSES = ("tokenizer_class", "processor_class", "image_processor_type", "feature_extractor_type")


def allowed(model: hub.LocalModel, trusted: str | None, registry: Registry) -> bool:
    """Whether the code that comes with `model` may run: `trusted` is its `reference`, and its code is here then.

    Raises ModelError where the model needs code and nobody trusts it (with what to type), where `trusted` names
    anything but this model at this revision, and where the code is another repository's.
    """
    kernel = _kernel(_read(model.path / CONFIG))
    if kernel is not None:
        raise ModelError(
            f"model {model.id!r}: its {CONFIG} asks for {kernel!r}, compiled code of the hub, which is not run: remove"
            " that key"
        )
    if trusted is None:
        needed = needs(model.path)
        if needed is not None:
            raise ModelError(f"model {model.id!r}: {needed}: {way_out(model)}")
        return False
    if model.revision is not None:
        model = hub.resolve(model.reference, registry, weights=False, code=True)
    if not any(model.path.rglob("*.py")):
        raise ModelError(f"{FLAG} {trusted}: model {model.id!r} has no code of its own: drop the flag")
    found = reference(model)
    if found not in (trusted, _of_folder(trusted, model)):
        raise ModelError(f"{FLAG} {trusted}: the model is {found}: read its code, and give exactly that")
    for file, name in _named(model.path):
        if "--" in name:
            other = name.partition("--")[0]
            raise ModelError(
                f"{FLAG} {trusted}: {file} names code of another repository, {other!r}, which is not run:"
                " copy that code into the model's folder, and name the folder"
            )
    return True


def way_out(model: hub.LocalModel) -> str:
    """What to type, for who has read the code."""
    return f"read that code, and if you trust it, add {FLAG} {reference(model)}"


def reference(model: hub.LocalModel) -> str:
    """The model at the revision of its code: the hub's commit; of a folder, 40 digits of a hash over its code."""
    return model.reference if model.revision is not None else f"{model.id}@{fingerprint(model.path)}"


def fingerprint(folder: Path) -> str:
    """40 hexadecimal digits of the SHA-256 over names and contents of the Python files in `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:40]


def needs(folder: Path) -> str | None:
    """Why this model does not load without code of its own, or None: transformers has classes for all of it."""
    config = _read(folder / CONFIG)
    if config.get("auto_map"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        kind = config.get("model_type")
        if kind not in CONFIG_MAPPING:
            return f"its {CONFIG} names code of its own for {kind!r}, which transformers does not have"
    for name in PROCESSORS:
        stored = _read(folder / name)
        if stored.get("auto_map"):
            import transformers

            known = [stored[key] for key in CLASSES if hasattr(transformers, str(stored.get(key)))]
            if not known and not (folder / "tokenizer.json").is_file():
                return f"its {name} names code of its own, for a class that transformers does not have"
    return None


def _named(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, class) of all that `auto_map` names."""
    for file in (CONFIG, *PROCESSORS):
        found = _read(folder / file).get("auto_map")
        for value in found.values() if isinstance(found, Mapping) else [found]:
            for name in value if isinstance(value, list | tuple) else [value]:
                if isinstance(name, str):
                    yield file, name


def _kernel(value: Any, key: str = "") -> str | None:
    """The first repository from which a config would have transformers fetch kernels: ORG/NAME as an implementation."""
    if isinstance(value, dict):
        inner = ((v, key if key.endswith(KERNELS) else str(k)) for k, v in value.items())
        return next((found for v, k in inner if (found := _kernel(v, k)) is not None), None)
    if isinstance(value, list):
        return next((found for v in value if (found := _kernel(v, key)) is not None), None)
    return value if isinstance(value, str) and key.endswith(KERNELS) and "/" in value else None


def _of_folder(trusted: str, model: hub.LocalModel) -> str | None:
    """`trusted` with an absolute path, where it names this folder by a relative one."""
    path, _, revision = trusted.rpartition("@")
    absolute = os.path.abspath(os.path.expanduser(path))
    return f"{absolute}@{revision}" if model.revision is None and absolute == model.id else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, which others complain about."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
