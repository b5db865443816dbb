"""Python that makes a transformers model again without pefttool, for the loaders that adapters write."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["as_trained", "base", "constructor"]

#: What turns a tensor into one of this dtype.
METHODS = {"float32": "float", "bfloat16": "bfloat16", "float16": "half"}
#: Keys of a configuration that say nothing of how the model is built, or are written otherwise.
OTHERWISE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


def constructor(model: Any) -> str | None:
    """`transformers.CLASS.from_pretrained(BASE, ...)`, or None for a model that needs code of its own."""
    import transformers

    architecture = type(model).__name__
    if getattr(transformers, architecture, None) is not type(model):
        return None
    config = model.config
    arguments: dict[str, Any] = {"dtype": "float32"}
    labels = getattr(config, "id2label", None)
    if architecture.endswith(("Classification", "ObjectDetection")) and labels:
        arguments["ignore_mismatched_sizes"] = True  # a pretrained head for other classes
        arguments["id2label"] = dict(labels)
        arguments["label2id"] = {label: index for index, label in labels.items()}
    padding = getattr(config, "pad_token_id", None)
    if architecture.endswith("SequenceClassification") and padding is not None:
        arguments["pad_token_id"] = padding  # a decoder looks for the last token before it
    if not getattr(config, "tie_word_embeddings", True):
        arguments["tie_word_embeddings"] = False
    changed = _changed(model)
    if changed:
        arguments |= {"ignore_mismatched_sizes": True, **changed}
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        given = {k: v for k, v in quantised.to_dict().items() if not k.startswith("_")}
        arguments["quantization_config"] = json.loads(json.dumps(given, default=str))  # plain values, no enums
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"transformers.{architecture}.from_pretrained({base(model)!r}, {written})"


def as_trained(model: Any, name: str, dtype: str = "float32") -> str:
    """Three lines that make a quantised model called `name` compute in one dtype; nothing for one that is not.

    transformers leaves the plain weights of a folder that holds quantised ones as they were saved.
    """
    if getattr(model.config, "quantization_config", None) is None:
        return ""
    cast = f"p.data = p.data.{METHODS[dtype]}() if p.is_floating_point() else p.data"
    return (
        f"for module in {name}.modules():\n"
        "    module.support_avx512bf16_for_cpu = False  # bitsandbytes would repack the weights\n"
        f"    for p in module.parameters(recurse=False): {cast}\n"
    )


def _changed(model: Any) -> dict[str, Any]:
    """What the model was built with in place of what its base's config.json says (the number of classes, of channels),
    as plain values."""
    config = model.config
    try:
        stored = type(config).from_pretrained(base(model), local_files_only=True).to_dict()
    except (OSError, ValueError):  # made in memory: there is no base to differ from
        return {}
    given = {k: v for k, v in config.to_dict().items() if k not in OTHERWISE and not isinstance(v, dict)}
    return {key: value for key, value in given.items() if key not in stored or stored[key] != value}


def base(model: Any) -> str:
    """What the model was loaded from."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", ""))
