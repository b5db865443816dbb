"""What people write for text and for lists, where YAML reads something else."""

from __future__ import annotations

from typing import Any

import pytest
from fake_registry import make_registry

from pefttool.api.errors import Refused
from pefttool.config import recipe as recipes
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry

FAKE = make_registry()
GOOD: dict[str, Any] = {"model": "m", "adapter": "alpha", "task": "plain", "data": {"train": "rows.jsonl"}}


def resolve(*overrides: str, registry: Registry = FAKE, **names: str) -> Recipe:
    return recipes.resolve(recipes.combine({**GOOD, **names}, {}, overrides), registry)


def again(found: Recipe, registry: Registry = FAKE) -> Recipe:
    """The recipe as a run writes it, read once more."""
    return recipes.resolve(recipes.yaml_text.load(found.as_yaml()), registry)


def only(override: str) -> str:
    with pytest.raises(Refused) as refused:
        resolve(override)
    (line,) = refused.value.complaints
    return str(line)


@pytest.mark.parametrize(
    ("value", "text"), [("1", "1"), ("0", "0"), ("-2.5", "-2.5"), ('"01"', "01"), ('"yes"', "yes"), ("a b", "a b")]
)
def test_a_number_where_text_belongs_is_that_text_also_once_it_is_written(value: str, text: str) -> None:
    found = resolve(f"adapter.note={value}", f"task.column={value}")
    assert (found.adapter_options.note, found.task_options.column) == (text, text)
    assert (again(found).adapter_options, again(found).task_options) == (found.adapter_options, found.task_options)


def test_a_column_without_a_name_but_a_number_is_named_by_it(registry: Registry) -> None:
    overrides = ("data.format=series-wide", "data.format_options.label_column=0")
    found = resolve(*overrides, registry=registry, adapter="lora", task="series-classification")
    options = registry.formats["series-wide"].Options.model_validate(dict(found.data.format_options))
    assert options.label_column == "0"
    assert again(found, registry).data == found.data


@pytest.mark.parametrize(("given", "name"), [("City", "City"), ("[City]", "City"), ("7", "7")])
def test_a_list_of_one_may_be_written_as_its_one_value(given: str, name: str, registry: Registry) -> None:
    found = resolve(f"task.ignore={given}", registry=registry, adapter="lora", task="tabular-classification")
    assert found.task_options.ignore == (name,)
    assert again(found, registry).task_options == found.task_options


def test_the_one_value_of_a_list_is_checked_like_any() -> None:
    assert resolve("memory.offload=activations").memory.offload == ("activations",)
    line = only("memory.offload=activation")
    assert line.startswith("memory.offload: 'activation' is not allowed: expected 'activations' or 'embeddings'")
