"""The order in which the contract says that a run calls a task and an adapter is the order in which it does."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generated import generate
from task_samples import SAMPLES

from pefttool import Adapter, Task
from pefttool import run as stages
from pefttool.config import recipe
from pefttool.config import registry as registries
from pefttool.config.registry import Kind, Registered, Registry
from pefttool.testing.models import model_folder

TASK, ADAPTER = "text-classification", "lora"


def methods(kind: type) -> list[str]:
    """Names of the public methods and properties, as they stand in the class."""
    members = vars(kind).items()
    return [n for n, m in members if not n.startswith("_") and (inspect.isfunction(m) or isinstance(m, property))]


@pytest.mark.parametrize("kind", [Task, Adapter])
def test_the_class_is_in_the_order_that_it_documents(kind: type) -> None:
    assert [name for _, name, _ in generate.calls(kind)] == methods(kind)


def recording(thing: Any, interface: type, seen: list[str]) -> Any:
    """`thing`, as one of a subclass that notes which methods of the contract are called."""
    own = type(thing)

    def noting(name: str) -> Any:
        def called(self: Any, *arguments: Any, **named: Any) -> Any:
            seen.append(name)
            return getattr(own, name)(self, *arguments, **named)

        return called

    noted = {name: noting(name) for name in methods(interface) if inspect.isfunction(vars(interface)[name])}
    return type(own.__name__, (own,), {**noted, "__module__": own.__module__})()


def with_(kind: Kind[Any], name: str, thing: Any) -> Kind[Any]:
    entries = {n: Registered(thing if n == name else kind[n], kind.owner(n)) for n in kind}
    return Kind("thing", entries, {})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[type, list[str]]:
    """What a small run with a recognised task calls, in the order of first calls."""
    folder, tasks, adapters = tmp_path_factory.mktemp("order"), [], []
    found = registries.build()
    registry: Registry = replace(
        found,
        tasks=with_(found.tasks, TASK, recording(found.tasks[TASK], Task, tasks)),
        adapters=with_(found.adapters, ADAPTER, recording(found.adapters[ADAPTER], Adapter, adapters)),
    )
    rows = [row for row in SAMPLES[TASK].rows(folder) for _ in range(2)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {
        "model": str(model_folder(SAMPLES[TASK].kind)),
        "adapter": ADAPTER,
        "device": "cpu",
        "data": {"train": str(path), "eval_fraction": 0.5, "allow_overlap": True},
        "train": {"batch_size": 2, "max_steps": 2, "evaluate_every": 1, "checkpoint_every": 1, "rehearse": False},
        "out": str(folder / "run"),
        "check": "none",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTTOOL_CACHE", str(folder / "cache"))  # what is kept there is not encoded again
        stages.run(recipe.resolve(given, registry), registry)
    return {Task: list(dict.fromkeys(tasks)), Adapter: list(dict.fromkeys(adapters))}


@pytest.mark.parametrize("kind", [Task, Adapter])
def test_a_run_calls_them_in_this_order(seen: dict[type, list[str]], kind: type) -> None:
    order = [name for _, name, _ in generate.calls(kind)]
    assert seen[kind] == [name for name in order if name in seen[kind]]


@pytest.mark.parametrize("kind", [Task, Adapter])
def test_a_run_calls_all_that_it_always_calls(seen: dict[type, list[str]], kind: type) -> None:
    assert [name for _, name, always in generate.calls(kind) if always and name not in seen[kind]] == []


def test_the_page_has_every_method() -> None:
    page = generate.contract_page()
    for kind in (Task, Adapter):
        for stage, name, always in generate.calls(kind):
            assert f"| `{name}` | {'' if always else 'may be'} |" in page, (stage, name)
