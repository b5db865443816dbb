"""Pydantic's complaints in the user's own key names: one line for each key, with what is expected there."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pefttool.api.errors import suggest

Model = TypeVar("Model", bound=BaseModel)


def short(value: Any) -> str:
    """`repr`, at a length that fits into a line; documents may nest or refer to themselves."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 100
    try:
        return shortened.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a very large {type(value).__name__}"


def validate(model: type[Model], values: Mapping[str, Any], prefix: str, complaints: list[str]) -> Model | None:
    """A frozen `model` of `values`, or None and a line in `complaints` for each mistake, its key behind `prefix`."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        expected: dict[str, list[str]] = {}  # a union complains once for each of its types: one line all the same
        for item in error.errors(include_url=False):
            key, given = _place(values, item)
            if item["type"] == "extra_forbidden":
                complaints.append(f"{prefix}{key}: unknown key: {_suggest_key(model, item['loc'])}")
            elif item["type"] == "missing":
                complaints.append(f"{prefix}{key}: none given, and it has no default")
            elif not key:
                complaints.append(f"{prefix.rstrip('.') or 'recipe'}: {_expectation(model, item)}")
            else:
                start = f"{prefix}{key}: {short(given)} is not allowed: expected "
                expected.setdefault(start, []).append(_expectation(model, item))
        complaints.extend(start + ", or ".join(dict.fromkeys(reasons)) for start, reasons in expected.items())
        return None


def _place(values: Mapping[str, Any], item: Any) -> tuple[str, Any]:
    """The user's own key and what stands there: pydantic's location without the names of types in a union."""
    path: list[str] = []
    at: Any = values
    for part in item["loc"]:
        keys = at if isinstance(at, Mapping) else range(len(at)) if isinstance(at, list | tuple) else ()
        if part in keys:
            at = at[part]
        elif item["type"] in ("missing", "extra_forbidden"):
            at = None
        else:
            break
        path.append(str(part))
    return ".".join(path), at


def _expectation(model: type[BaseModel], item: Any) -> str:
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        key = next(iter(_fields_at(model, item["loc"])), "name")
        return f"a section with keys, such as {'.'.join(str(p) for p in (*item['loc'], key))}"
    if item["type"] == "string_type" and isinstance(item["input"], bool):
        return "a string, and YAML reads yes, no, on, off, true and false as none: put it in quotes"
    return str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def _suggest_key(model: type[BaseModel], location: Sequence[Any]) -> str:
    """What the unknown key may have meant, also where it was put into the wrong section."""
    *parents, last = (str(part) for part in location)
    fields = _fields_at(model, parents)
    elsewhere = [] if parents else [f"{s}.{last}" for s in fields if last in _fields_at(model, [s])]
    return (
        f"did you mean {elsewhere[0]!r}? (allowed: {', '.join(sorted(fields))})" if elsewhere else suggest(last, fields)
    )


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
