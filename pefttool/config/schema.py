"""JSON Schemas of what users write: for editors, for `pefttool adapters show`, for the docs."""

from __future__ import annotations

from typing import Any

from pefttool.api.errors import PluginError
from pefttool.api.options import Options
from pefttool.config.registry import Kind, Registry
from pefttool.config.settings import Document


def of_options(kind: Kind[Any], name: str) -> dict[str, Any]:
    """The schema of the options of `kind[name]`. Raises PluginError if its plugin gave them a type that has none."""
    options: type[Options] = kind[name].Options
    try:
        # Nested models of two plugins may share a name: the whole name keeps them apart in one document.
        schema = options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    except Exception as error:  # pydantic raises its own type for each reason
        plugin = kind.owner(name)
        reason = " ".join(str(error).split())
        raise PluginError(
            f"the options of {name!r} from {plugin.owner} have no JSON Schema: {reason}"
            f" (update {plugin.distribution}, or leave it out with --without {plugin.name})"
        ) from error
    if "$defs" in schema:
        schema["$defs"] = {f"{name}.{key}": value for key, value in schema["$defs"].items()}
    return schema


def of_recipe(registry: Registry) -> dict[str, Any]:
    """The schema of a recipe, with the options of every installed adapter, task and quantizer."""
    document = Document.model_json_schema()
    kinds: tuple[tuple[str, Kind[Any]], ...] = (
        ("adapter", registry.adapters),
        ("task", registry.tasks),
        ("quantize", registry.quantizers),
    )
    for section, kind in kinds:
        choices = []
        for name in kind:
            options = of_options(kind, name)
            document["$defs"].update(options.pop("$defs", {}))
            options["title"] = f"{section} {name}"
            options["properties"] = {"name": {"const": name}, **options.get("properties", {})}
            options["required"] = ["name", *options.get("required", [])]
            choices.append(options)
        described = document["properties"][section]
        document["properties"][section] = {
            "description": described["description"],
            "oneOf": [*choices, {"enum": list(kind), "description": "a name alone: every option at its default"}],
        }
    document["properties"]["quantize"]["oneOf"].append({"type": "null", "description": "the weights stay as they are"})
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = "pefttool recipe"
    return document
