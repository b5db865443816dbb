"""How a recipe chooses a quantizer and its options: every spelling is one recipe, every mistake is one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_registry import make_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import Refused
from pefttool.config import recipe as recipes
from pefttool.config.recipe import Recipe

REGISTRY = make_registry()
GOOD: dict[str, Any] = {"model": "m", "adapter": "alpha", "task": "plain", "data": {"train": "rows.jsonl"}}


def resolve(document: dict[str, Any], *overrides: str, **flags: str) -> Recipe:
    keys = {key.replace("__", "."): value for key, value in flags.items()}
    return recipes.resolve(recipes.combine(document, keys, overrides), REGISTRY)


def only(document: dict[str, Any], *overrides: str, **flags: str) -> str:
    """The one complaint."""
    with pytest.raises(Refused) as refused:
        resolve(document, *overrides, **flags)
    (line,) = refused.value.complaints
    assert "\n" not in line
    return line


def spelt(given: dict[str, Any], way: str) -> Recipe:
    """The recipe with these options of the quantizer, as one of several people would write it."""
    typed = [f"quantize.{key}={json.dumps(value)}" for key, value in given.items()]
    section = {"name": "q4", **given}
    if way == "file":
        return resolve({**GOOD, "quantize": section})
    if way == "name in the file":
        return resolve({**GOOD, "quantize": "q4"}, *typed)
    if way == "over null":
        return resolve({**GOOD, "quantize": None}, *typed, quantize__name="q4")
    if way == "over another":
        return resolve({**GOOD, "quantize": {**section, "group": 7, "note": "x"}}, f"quantize={json.dumps(section)}")
    if way == "flag":
        return resolve(GOOD, *typed, quantize__name="q4")
    if way == "options first":
        return resolve(GOOD, *typed, "quantize=q4")
    return resolve(GOOD, f"quantize={json.dumps(section)}")


WAYS = ("file", "name in the file", "over null", "over another", "flag", "options first", "override")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "nested": st.booleans(),
            "group": st.integers(1, 10**6),
            "note": st.none() | st.sampled_from(["a", "64", "yes", "", "{", "é"]),
        },
    )
)
@settings(max_examples=60, deadline=None)
def test_every_spelling_of_a_quantizer_is_the_same_recipe(options: dict[str, Any]) -> None:
    expected = {"name": "q4", "nested": True, "group": 64, "note": None, **options}
    for way in WAYS:
        found = spelt(options, way)
        assert found.as_document()["quantize"] == expected, way
        assert found.quantize == "q4" and found.quantize_options is not None
        assert found.quantize_options.model_fields_set == set(options), way
        again = recipes.resolve(recipes.yaml_text.load(found.as_yaml()), REGISTRY)
        assert again.as_document() == found.as_document()


@pytest.mark.parametrize("given", [{}, {"quantize": None}, {"quantize": {}}, {"quantize": {"name": None}}])
def test_no_quantizer_has_no_options(given: dict[str, Any]) -> None:
    found = resolve({**GOOD, **given})
    assert (found.quantize, found.quantize_options, found.as_document()["quantize"]) == (None, None, None)
    assert resolve({**GOOD, "quantize": {"name": "q4", "group": 2}}, "quantize=null").quantize is None


@pytest.mark.parametrize(
    ("quantize", "line"),
    [
        ({"name": "q4", "nestd": False}, "quantize.nestd: unknown key: did you mean 'nested'? (allowed: "),
        ({"name": "q4", "nested": 7}, "quantize.nested: 7 is not allowed: expected a valid boolean"),
        ({"name": "q4", "group": 0}, "quantize.group: 0 is not allowed: expected greater than or equal to 1"),
        ({"name": "q44", "group": 0}, "quantize.name: unknown quantizer 'q44': did you mean 'q4'? (allowed: q4)"),
        ({"group": 2}, "quantize: options are given without quantize.name: add --quantize NAME (allowed: q4)"),
        (["q4"], "quantize.name: ['q4'] is not a name: (allowed: q4)"),
        (4, "quantize.name: 4 is not a name: (allowed: q4)"),
        ("qlora", "quantize.name: 'qlora' is LoRA beside weights in 4 bits"),
    ],
)
def test_a_wrong_quantizer_or_option_is_one_line(quantize: Any, line: str) -> None:
    assert only({**GOOD, "quantize": quantize}).startswith(line)


def test_options_of_the_examples_quantizer() -> None:
    """They change how the example is stored; after `quantize: null` there is nothing that they could be of."""
    found = resolve({}, "quantize.group=32", adapter__name="alpha")
    assert found.as_document()["quantize"] == {"name": "q4", "nested": True, "group": 32, "note": None}
    line = only({}, "quantize=null", "quantize.group=32", adapter__name="alpha")
    assert line.startswith("quantize: options are given without quantize.name")
    assert resolve({}, "quantize.name=null", adapter__name="alpha").quantize is None
