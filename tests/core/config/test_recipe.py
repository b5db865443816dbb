"""Recipes: who overrides whom, every mistake at once in the user's own keys, and what was resolved can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_registry import make_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import PefttoolError, Refused, UsageError
from pefttool.config import recipe as recipes
from pefttool.config import recipe_file, schema
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.config.settings import Document

REGISTRY = make_registry()
GOOD: dict[str, Any] = {"model": "m", "adapter": "alpha", "task": "plain", "data": {"train": "rows.jsonl"}}


def resolve(document: dict[str, Any], *overrides: str, **flags: str) -> Recipe:
    keys = {key.replace("__", "."): value for key, value in flags.items()}
    return recipes.resolve(recipes.combine(document, keys, overrides), REGISTRY)


def complaints(document: dict[str, Any], *overrides: str, **flags: str) -> list[str]:
    with pytest.raises(Refused) as refused:
        resolve(document, *overrides, **flags)
    assert all("\n" not in line for line in refused.value.complaints)
    return list(refused.value.complaints)


def only(document: dict[str, Any], *overrides: str, **flags: str) -> str:
    (line,) = complaints(document, *overrides, **flags)
    return line


@pytest.mark.parametrize(
    "text", ["yes", "off", "true", "01", "1_0", "1e3", "2024-01-01", '"yes"', "a b", "say: ", "[x]"]
)
def test_an_option_that_is_text_takes_what_was_typed(text: str) -> None:
    assert resolve(GOOD, f"task.column={text}").task_options.column == text.strip('"')
    again = recipes.combine(recipes.combine(GOOD, {}, [f"task.column={text}"]), {"train.seed": 1}, ())
    assert recipes.resolve(again, REGISTRY).task_options.column == text.strip('"')


def test_what_is_no_text_is_read_as_yaml() -> None:
    found = resolve(GOOD, "train.seed=0x10", "data.cache=off", "quantize=null", "train.learning_rate=1e-3")
    assert (found.train.seed, found.data.cache, found.quantize, found.train.learning_rate) == (16, False, None, 1e-3)
    in_a_file = {"name": "plain", "column": True}
    assert "YAML reads yes" in only({**GOOD, "task": in_a_file})  # there it has to be quoted


def test_the_file_then_flags_then_overrides() -> None:
    document = {**GOOD, "adapter": {"name": "beta", "tokens": 4}, "train": {"epochs": 5, "seed": 1}}
    assert resolve(document).adapter == "beta"
    del document["adapter"]["tokens"]
    found = resolve(document, "adapter.r=32", "train.epochs=9", "model=third", adapter__name="alpha", model="second")
    assert (found.adapter, found.adapter_options.r, found.model) == ("alpha", 32, "third")
    assert (found.train.epochs, found.train.seed) == (9, 1)


def test_flags_that_were_not_given_change_nothing() -> None:
    assert recipes.combine(GOOD, {"model": None}, [])["model"] == "m"
    assert GOOD["adapter"] == "alpha", "the given document is not changed"


def test_defaults_core_then_task_then_adapter_then_user() -> None:
    train = resolve(GOOD).train
    assert (train.warmup, train.batch_size, train.epochs, train.learning_rate) == (0.05, 3, 7, 5e-3)
    assert resolve(GOOD, "train.epochs=1").train.epochs == 1
    assert resolve({**GOOD, "adapter": {"name": "beta", "tokens": 1}}).train.epochs == 2


def test_a_head_learns_as_fast_as_its_task_needs(registry: Registry) -> None:
    def rates(task: str, **given: float) -> tuple[float | None, float | None]:
        document = {"model": "m", "data": "d", "adapter": "lora", "task": task, "train": given}
        train = recipes.resolve({**document, "data": {"train": "d"}}, registry).train
        return train.learning_rate, train.head_learning_rate

    assert rates("text-classification") == (1e-3, 1e-3)
    assert rates("token-classification") == (1e-3, 1e-2)
    assert rates("token-classification", head_learning_rate=2e-3) == (1e-3, 2e-3)


def test_a_task_may_want_slower_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own rates are scaled; what the user says is not, nor what is no rate."""
    monkeypatch.setattr(type(REGISTRY.tasks["plain"]), "rates", {"learning_rate": 0.1})
    train = resolve(GOOD).train
    assert (train.learning_rate, train.epochs) == (pytest.approx(5e-4), 7)
    assert resolve(GOOD, "train.learning_rate=0.02").train.learning_rate == 0.02


def test_a_task_known_later_brings_its_defaults() -> None:
    document = {k: v for k, v in GOOD.items() if k != "task"}
    early = resolve(document, "train.seed=3")
    assert early.task is None and early.as_document()["train"] == {"seed": 3}
    late = recipes.resolve(early.as_document(), REGISTRY, task="plain")
    assert (late.task, late.train.epochs, late.train.seed) == ("plain", 7, 3)


def test_neither_model_nor_data_is_the_example_and_an_explicit_null_stays() -> None:
    found = resolve({}, adapter__name="alpha")
    assert (found.task, found.model, found.quantize) == ("chat", "source:model", "q4")
    assert found.data.train == "source:rows" and found.train.epochs == 1
    assert resolve({}, "quantize=null", "train.epochs=4", adapter__name="alpha").quantize is None
    assert resolve({"model": None, "data": None}, adapter__name="alpha").model == "source:model"
    assert resolve({"data": {"train": None, "eval_fraction": 0.5}}, adapter="alpha").data.eval_fraction == 0.5


def test_the_example_is_not_quantised_for_an_adapter_that_trains_the_base(registry: Registry) -> None:
    """`pefttool run --adapter full` has to work without the user knowing what the example quantises with."""
    assert recipes.resolve({"adapter": {"name": "full"}}, registry).quantize is None
    assert recipes.resolve({"adapter": {"name": "lora"}}, registry).quantize == "nf4"


def test_a_task_without_example_says_so() -> None:
    line = only({}, adapter__name="alpha", task__name="plain")
    assert "task 'plain' has no built-in example: use --model and --data" in line


def test_short_and_long_spelling_and_empty_sections() -> None:
    assert resolve({**GOOD, "train": None, "memory": None}).adapter == "alpha"
    assert resolve({**GOOD, "adapter": {"name": "alpha", "r": 2}}, "adapter=alpha").adapter_options.r == 2
    assert (
        recipes.resolve(GOOD, REGISTRY).as_document() == resolve({**GOOD, "adapter": {"name": "alpha"}}).as_document()
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("2E4", 2e4), ("0.5", 0.5), ("7", 7), (".5e1", 5.0)],
)
def test_numbers_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    assert resolve(GOOD, f"train.learning_rate={text}").train.learning_rate == value
    path = tmp_path / "r.yaml"
    path.write_text(f"train: {{learning_rate: {text}}}")
    assert resolve({**GOOD, **recipe_file.read(path)}).train.learning_rate == value


def test_quoted_numbers_are_text_and_survive_being_written() -> None:
    found = resolve(GOOD, 'adapter.note="1e5"', "train.max_steps=1e2")
    assert found.adapter_options.note == "1e5" and found.train.max_steps == 100
    assert recipes.resolve(recipes.yaml_text.load(found.as_yaml()), REGISTRY).adapter_options == found.adapter_options


def test_all_mistakes_at_once_each_with_its_key() -> None:
    document = {
        "modle": "m",
        "adapter": {"name": "alpha", "r": 0, "alhpa": 3, "mode": "fats"},
        "task": {"name": "plian"},
        "data": {"train": "x", "eval_fraction": 2},
        "train": {"epoch": 3, "optimizer": "adam", "compile": True, "patience": 1, "keep_best": False},
        "quantize": "q5",
        "dtype": "int3",
    }
    found = complaints(document)
    starts = [
        "task.name: unknown task 'plian': did you mean 'plain'?",
        "quantize.name: unknown quantizer 'q5': (allowed: q4)",
        "modle: unknown key: did you mean 'model'?",
        "train.epoch: unknown key: did you mean 'epochs'?",
        "train.optimizer: 'adam' is not allowed: expected 'adamw', 'sgd', ",
        "train.patience: ",
        "data.eval_fraction: 2 is not allowed: expected less than 1",
        "dtype: 'int3' is not allowed: expected 'auto', 'float32', 'bfloat16' or 'float16'",
        "adapter.r: 0 is not allowed: expected greater than or equal to 1",
        "adapter.mode: 'fats' is not allowed: expected 'slow' or 'fast'",
        "adapter.alhpa: unknown key",
        "model: none given",
    ]
    for start in starts:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert len(found) == len(starts)


def test_a_learning_rate_of_zero_is_refused() -> None:
    for key in ("learning_rate", "head_learning_rate"):
        assert only(GOOD, f"train.{key}=0") == f"train.{key}: 0 is not allowed: expected greater than 0"


def test_an_unknown_key_that_belongs_into_a_section() -> None:
    line = only(GOOD, "epochs=3")
    assert line.startswith("epochs: unknown key: did you mean 'train.epochs'?") and "train" in line


def test_a_union_is_one_line_under_the_users_own_key() -> None:
    line = only(GOOD, "adapter.targets=3")
    assert line == "adapter.targets: 3 is not allowed: expected a valid list, or 'all'"
    line = only(GOOD, "adapter.targets=[q, [3]]")
    assert line.startswith("adapter.targets")


@pytest.mark.parametrize("value", ["text", "3", "[1, 2]", "true"])
@pytest.mark.parametrize("section", ["data", "train", "memory", "generation"])
def test_a_section_that_is_none(section: str, value: str) -> None:
    found = complaints({**GOOD, section: yaml.safe_load(value)})
    assert any(f"{section}: " in line and f"expected a section with keys, such as {section}." in line for line in found)
    assert len(found) == (2 if section == "data" else 1)


def test_options_without_a_default_and_options_without_a_task() -> None:
    assert only({**GOOD, "adapter": "beta"}) == "adapter.tokens: none given, and it has no default"
    line = only({**GOOD, "task": {"column": "x"}})
    assert line == "task: options are given without task.name: add --task NAME"


@pytest.mark.parametrize("value", [".inf", ".nan", "1e400", "-1", "0"])
def test_numbers_that_are_none(value: str) -> None:
    assert only(GOOD, f"train.epochs={value}").startswith("train.epochs: ")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.epochs", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("model.x=1", "'model' is 'm' in the recipe, not a section"),
        ("train.epochs=[1", "is not YAML"),
        ("adapter.targets={a: 1, a: 2}", "is not YAML"),
        ("train.epochs=" + "[" * 5000, "is not YAML"),
    ],
)
def test_overrides_that_are_none(override: str, reason: str) -> None:
    assert reason in only(GOOD, override)


def test_every_bad_override_is_reported() -> None:
    assert len(complaints(GOOD, "a", "b", "train.epochs=[")) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: m\ntrain: {epochs: 1\nx: 2\n", ":3 is not YAML: "),
        ("model: a\ntask: t\nmodel: b\n", ":3 is not YAML: the key 'model' is there twice"),
        ("train:\n  seed: 1\n  seed: 2\n", ":3 is not YAML: the key 'seed' is there twice"),
        ("a: !!python/object/apply:os.system [x]", ":1 is not YAML: could not determine a constructor"),
        ("? [a]\n: 1", ":1 is not YAML: found unhashable key"),
        ("a: 2024-13-45", " is not YAML: ValueError"),
        ("a: !!int x", " is not YAML: ValueError"),
        ("a: !!timestamp x", " is not YAML: AttributeError"),
        ("- a\n- b", ":1 is a list; expected keys"),
        ("text", ":1 is a str; expected keys"),
        ("[" * 5000, "is nested too deeply"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        recipe_file.read(path)
    assert str(refused.value).startswith(f"recipe {path}") and reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes("model: Grün".encode("latin-1"))
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin1.yaml"):
        with pytest.raises(UsageError, match="cannot be read"):
            recipe_file.read(path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert recipe_file.read(tmp_path / "empty.yaml") == {}


def test_the_shipped_first_run_names_no_adapter() -> None:
    assert recipe_file.read(recipes.FIRST_RUN) == {"task": {"name": "chat"}}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "train", "epochs", "r", "targets", "seed", "adapter", "data"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
        | st.dictionaries(st.integers() | st.none() | st.booleans(), inner, max_size=2)
    ),
    max_leaves=12,
)
SECTION = st.sampled_from([*Document.model_fields, "x"])


@given(st.dictionaries(SECTION | st.integers(), JUNK, max_size=6), st.lists(st.text(max_size=20), max_size=2))
@settings(max_examples=400, deadline=None)
def test_junk_is_refused_and_never_crashes(document: dict[Any, Any], overrides: list[str]) -> None:
    try:
        found = resolve({**GOOD, **document}, *overrides)
    except PefttoolError as error:
        assert str(error)
    else:
        json.dumps(found.as_document())


@given(st.text(max_size=60) | st.binary(max_size=30).map(lambda b: b.decode("latin-1")))
@settings(max_examples=300, deadline=None)
def test_junk_text_is_yaml_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        document = recipe_file.read(path)
        recipes.resolve(document, REGISTRY)
    except PefttoolError as error:
        assert "\n" not in str(error) or isinstance(error, Refused)


def test_documents_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("model: m\ndata: {train: x}\nadapter: &a {name: alpha, targets: *a}\n")
    with pytest.raises(UsageError, match=r"loop\.yaml:3 .*alias \*a.*write the value out"):
        recipe_file.read(path)


def test_a_document_given_by_a_program_may_hold_one_value_twice() -> None:
    shared = ["q_proj"]
    first = resolve({**GOOD, "adapter": {"name": "alpha", "targets": shared}})
    text = recipes.yaml_text.dump({"a": shared, "b": shared})
    assert "&" not in text and recipes.yaml_text.load(text) == {"a": ["q_proj"], "b": ["q_proj"]}
    assert first.adapter_options.targets == shared


def test_a_huge_value_is_shown_short() -> None:
    line = only(GOOD, f"train.optimizer={'x' * 100_000}")
    assert len(line) < 300


@given(
    st.builds(
        lambda r, note, epochs, seed, scale: {
            **GOOD,
            "adapter": {"name": "alpha", "r": r, "note": note, "scale": scale},
            "train": {"epochs": epochs, "seed": seed},
        },
        st.integers(1, 10**9),
        st.text(st.characters(codec="utf-8"), max_size=20)
        | st.sampled_from(["1e5", "yes", "~", "0x1", "1:30", "-", "\x85"]),
        st.floats(min_value=1e-300, max_value=1e300),
        st.integers(0, 2**32 - 1),
        st.none() | st.floats(min_value=1e-12, max_value=1e12),
    )
)
@settings(max_examples=200, deadline=None)
def test_the_resolved_recipe_is_a_fixed_point(document: dict[str, Any]) -> None:
    first = resolve(document)
    again = recipes.resolve(recipes.yaml_text.load(first.as_yaml()), REGISTRY)
    assert again.as_document() == first.as_document()
    assert again.adapter_options == first.adapter_options and again.train == first.train
    assert again.as_yaml() == first.as_yaml()


def test_the_schema_describes_every_key_and_refuses_others() -> None:
    described = schema.of_recipe(REGISTRY)
    json.dumps(described)
    assert described["additionalProperties"] is False
    assert set(described["properties"]) == set(Document.model_fields)
    by_name = {
        c["properties"]["name"]["const"]: c for c in described["properties"]["adapter"]["oneOf"] if "properties" in c
    }
    assert set(by_name) == {"alpha", "beta"}
    assert by_name["alpha"]["properties"]["r"] == {
        "default": 8,
        "description": "rank",
        "minimum": 1,
        "title": "R",
        "type": "integer",
    }
    assert by_name["beta"]["required"] == ["name", "tokens"]
    assert all(choice["additionalProperties"] is False for choice in by_name.values())
    assert {"enum": ["alpha", "beta"]}.items() <= described["properties"]["adapter"]["oneOf"][-1].items()
    quantized, by_name_alone, nothing = described["properties"]["quantize"]["oneOf"]
    assert quantized["properties"]["name"] == {"const": "q4"} and quantized["required"] == ["name"]
    assert set(quantized["properties"]) == {"name", "nested", "group", "note"}
    assert quantized["additionalProperties"] is False and quantized["properties"]["group"]["minimum"] == 1
    assert by_name_alone["enum"] == ["q4"] and nothing["type"] == "null"
    for section in ("data", "train", "memory", "generation"):
        name = described["properties"][section]["$ref"].rpartition("/")[2]
        definition = described["$defs"][name]
        assert definition["additionalProperties"] is False
        assert all(field.get("description") for field in definition["properties"].values())
