"""pefttool.json in an adapter's folder, written and read: what reloading the adapter needs to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import UsageError
from pefttool.files.fingerprint import weight_files
from pefttool.runs.run_folder import ADAPTER
from pefttool.setup import devices
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.toolkit.columns import describe

if TYPE_CHECKING:
    pass

ADAPTER_FACTS = "pefttool.json"


def adapter_facts(plan: Plan, base: Base) -> dict[str, Any]:
    """`pefttool.json`: what reloading an adapter needs to know, and what it was trained on."""
    owner = plan.registry.adapters.owner(plan.adapter.name)
    task_owner = plan.registry.tasks.owner(plan.task.name)
    template = getattr(base.processor, "chat_template", None)
    return {
        "adapter": plan.adapter.name,
        "adapter_distribution": owner.distribution,
        "adapter_version": owner.version,
        "adapter_options": plan.recipe.adapter_options.model_dump(mode="json"),
        "task": plan.task.name,
        "task_distribution": task_owner.distribution,
        "task_version": task_owner.version,
        "task_options": base.setting.options.model_dump(mode="json"),
        "base": {
            "reference": base.local.reference,
            "id": base.local.id,
            "revision": base.local.revision,
            "path": str(base.local.path),
            "sha256": weight_files(base.local.path),
        },
        "quantize": plan.facts.quantizer,
        "quantize_options": plan.quantization and plan.quantization.options.model_dump(mode="json"),
        "dtype": plan.choice.dtype,
        "labels": list(base.setting.labels),
        "fitted": dict(base.setting.fitted),
        "format": plan.recipe.data.format,
        "format_options": dict(plan.recipe.data.format_options),
        "head_modules": list(base.facts.head_modules),
        "output_modules": list(base.facts.output_modules),
        "sequence_length": base.setting.sequence_length,
        "frozen_backbone": base.setting.frozen_backbone,
        "added_positions": plan.added_positions,
        "packing": base.setting.packing,
        "batch_size": plan.recipe.train.batch_size,
        "generation": dict(base.setting.generation),
        "seed": base.setting.seed,
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest() if template else None,
    }


#: In a merged model's `pefttool.json`: what was merged into what, and the hash of the result.
MERGED = "merged"
NULL = type(None)
#: What `pefttool.json` has to hold, and of what kind, to be loaded by.
FACTS: Mapping[str, type | tuple[type, ...]] = {
    "adapter": str,
    "task": str,
    "task_options": dict,
    "base": dict,
    "quantize": (str, NULL),
    "quantize_options": (dict, NULL),
    "dtype": str,
    "labels": list,
    "head_modules": list,
    "output_modules": list,
    "sequence_length": int,
    "frozen_backbone": bool,
    "generation": dict,
    "seed": int,
}
BASE: Mapping[str, type | tuple[type, ...]] = {"reference": str, "sha256": str}


def read(folder: Path, run: Path) -> dict[str, Any]:
    """The document in an adapter's `folder`, found fit to load by. Raises UsageError; `run` is what the user named."""
    try:
        document = json.loads((folder / ADAPTER_FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{run} is no finished run: it has no {ADAPTER}/{ADAPTER_FACTS}; give the folder that"
            " `pefttool run` printed"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{folder / ADAPTER_FACTS} cannot be read: {error}; restore the file, or train again"
        ) from error
    if not isinstance(document, dict):
        raise UsageError(f"{folder / ADAPTER_FACTS} is damaged: expected an object; train again, or restore the file")
    document.setdefault("quantize_options", None)  # it was saved before quantizers took options: with the defaults
    check(document, FACTS, folder / ADAPTER_FACTS)
    check(document["base"], BASE, folder / ADAPTER_FACTS)
    if document["dtype"] not in devices.DTYPES:
        known = ", ".join(devices.DTYPES)
        found = f"{folder / ADAPTER_FACTS}: 'dtype': found {document['dtype']!r}"
        raise UsageError(f"{found}, expected one of {known}; restore the file, or train again")
    return document


def check(document: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], path: Path) -> None:
    """Raise UsageError for the first key that is missing, or of another kind."""
    for key, kind in kinds.items():
        if key not in document or not isinstance(document[key], kind):
            found = describe(document[key]) if key in document else "no such key"
            wanted = " or ".join(
                "null" if k is NULL else k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))
            )
            raise UsageError(f"{path}: {key!r}: found {found}, expected {wanted}; restore the file, or train again")
