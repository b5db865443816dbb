"""The options of an adapter, task, quantizer or format as rows: name, type, default, what is allowed, description."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pefttool.config import schema
from pefttool.config.registry import Kind


@dataclass(frozen=True)
class Option:
    """`allowed` and `default` are written as in YAML; `required` options have no default."""

    name: str
    type: str
    required: bool
    default: Any
    allowed: str
    description: str

    @property
    def default_text(self) -> str:
        return "(required)" if self.required else json.dumps(self.default, ensure_ascii=False)


def options(kind: Kind[Any], name: str) -> list[Option]:
    """The options of `kind[name]`, in the order of their definition."""
    return describe(schema.of_options(kind, name))


def describe(described: dict[str, Any]) -> list[Option]:
    """The properties of a JSON Schema as options."""
    required = described.get("required", [])
    return [
        Option(
            name=key,
            type=_type(field),
            required=key in required,
            default=field.get("default"),
            allowed=_allowed(field),
            description=field.get("description", ""),
        )
        for key, field in described.get("properties", {}).items()
    ]


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(_type(f) for f in field.get("anyOf", field.get("oneOf", []))))
    if "$ref" in field:
        return str(field["$ref"]).rpartition(".")[2]
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return " or ".join(dict.fromkeys(_NAMES.get(type(v).__name__, type(v).__name__) for v in values))
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if field.get("items") else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) and values else "mapping"
    return str(field.get("type", "any"))


_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "NoneType": "null"}
_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
}


def _allowed(field: dict[str, Any]) -> str:
    """`"none", "all"`, or `>= 1 and < 2`, or nothing where the type says it all; "or" joins the parts of a union."""
    if "anyOf" in field or "oneOf" in field:
        parts = (_allowed(f) for f in field.get("anyOf", field.get("oneOf", [])))
        return " or ".join(dict.fromkeys(part for part in parts if part))
    if "enum" in field or "const" in field:
        return ", ".join(json.dumps(v, ensure_ascii=False) for v in field.get("enum", [field.get("const")]))
    if field.get("type") == "boolean":
        return "true, false"
    bounds = [text.format(field[key]) for key, text in _BOUNDS.items() if key in field]
    items = _allowed(field["items"]) if field.get("items") else ""
    return " and ".join([*bounds, *([f"each {items}"] if items else [])])
