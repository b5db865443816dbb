"""The base of all options: pydantic models whose mistakes are told by their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    pass


class Section(BaseModel):
    """Keys that somebody writes: unknown ones are refused, and a list of one is written as its one value, too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """`-o task.ignore=City` is what people write, and error messages say, for `[City]`."""
        if not isinstance(given, Mapping):
            return given
        lists = {name for name, field in cls.model_fields.items() if get_args(field.annotation)[1:] == (...,)}
        single = str | int | float
        return {k: [v] if k in lists and isinstance(v, single) else v for k, v in given.items()}


class Options(Section):
    """The options of one adapter, task, quantizer or format: fields with a type, a default and a description.

    Everything derives from it: YAML keys, `-o adapter.r=32`, `pefttool adapters show`, the JSON Schema, the docs.
    """

    #: YAML reads `1` as a number, and it is a fine name of a column or a class all the same.
    model_config = ConfigDict(validate_default=True, coerce_numbers_to_str=True)
