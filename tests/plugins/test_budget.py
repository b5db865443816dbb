"""`memory.budget`: the first rung that fits, the largest micro-batch there, and a refusal that says what would fit.

Against a made-up memory model, so that every decision can be checked; test_plan_command.py uses the real one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import configs

from pefttool.api.errors import UsageError
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.data.encoding import Encoded
from pefttool.forecast import budget, forecast, simulate
from pefttool.forecast.recorder import Estimate
from pefttool.inference.predictor import FEATURES
from pefttool.setup import devices, plan
from pefttool.setup.plan import Plan
from pefttool.training.rehearsal import Rehearsed

STATIC, A_TOKEN, CARD = 4000, 10, devices.DeviceFacts(build="cuda", cuda=(devices.CudaDevice("card", (8, 0), 1 << 33),))


def pretended(chosen: Plan, setting: Any, rows: int, tokens: int) -> Estimate:
    """Each technique saves something, and costs nothing here."""
    train, memory = chosen.recipe.train, chosen.recipe.memory
    static = STATIC - 500 * ("embeddings" in memory.offload) - 3000 * memory.stream
    a_token = A_TOKEN - 5 * (train.gradient_checkpointing != "none") - 2 * ("activations" in memory.offload)
    size = static + a_token * rows * tokens
    return Estimate(size, {"weights": static, "activations": size - static}, "backward", size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("llama")
    configs()["llama"].save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "peak", pretended)
    monkeypatch.setattr(forecast.overhead, "shares", lambda plan, estimate: ())


def planned(registry: Registry, folder: Path, *overrides: str) -> Plan:
    given = {"adapter": "lora", "model": str(folder), "quantize": "nf4", "device": "cuda"}
    resolved = recipe.resolve(
        recipe.combine(given, {}, ("train.sequence_length=32", *overrides)), registry, data_optional=True
    )
    return plan.make(resolved, registry, machine=CARD)


def objective(chosen: Plan) -> tuple[int, int]:
    train = chosen.recipe.train
    return train.batch_size * train.gradient_accumulation, train.sequence_length


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 24), st.integers(1, 3), st.integers(600, 20_000))
def test_what_is_found_fits_and_learns_the_same(registry, folder, rows, accumulation, allowed):
    made = planned(registry, folder, f"train.batch_size={rows}", f"train.gradient_accumulation={accumulation}")
    try:
        found = budget.fit(made, allowed)
    except UsageError as error:
        least = min(pretended(c.plan, None, rows // budget._divisor(made), 32).peak_bytes for c in budget._ladder(made))
        assert least > allowed and "at least" in str(error)
        return
    assert found.total_bytes <= allowed
    assert objective(found.plan) == objective(made)
    assert (found.rows, found.tokens) == (found.plan.recipe.train.batch_size, 32)
    # Nothing that was not needed: no rung before this one fits at its smallest, no larger micro-batch fits here.
    rungs = [c.plan for c in budget._ladder(made)]
    techniques = [(p.recipe.train.gradient_checkpointing, p.recipe.memory) for p in rungs]
    chosen = techniques.index((found.plan.recipe.train.gradient_checkpointing, found.plan.recipe.memory))
    smallest = rows // budget._divisor(made)
    assert all(pretended(p, None, smallest, 32).peak_bytes > allowed for p in rungs[:chosen])
    larger = found.rows * 2
    assert larger > rows or pretended(rungs[chosen], None, larger, 32).peak_bytes > allowed


def test_nothing_is_changed_where_everything_fits(registry, folder):
    made = planned(registry, folder)
    found = budget.fit(made, 1 << 20)
    assert replace(found.plan, notices=made.notices) == made
    assert found.plan.notices[-1].endswith("nothing had to be changed")


def test_what_the_user_settled_stays(registry, folder):
    made = planned(registry, folder, "train.batch_size=1", "train.gradient_checkpointing=none", "memory.offload=[]")
    found = budget.fit(made, 1400)
    assert found.plan.recipe.memory.stream and found.plan.recipe.memory.offload == ()
    assert found.plan.recipe.train.gradient_checkpointing == "none"


def test_a_refusal_says_what_would_fit(registry, folder):
    settled = ("train.batch_size=4", "memory.stream=false")
    made = planned(registry, folder, *settled, "train.sequence_length=64")
    with pytest.raises(UsageError) as caught:
        budget.fit(made, STATIC - 500 + 100)
    text = str(caught.value)
    assert "\n" not in text and "at least" in text and "1 x 64 tokens" in text
    match = re.search(r"train\.sequence_length=(\d+) would fit", text)
    assert match is not None
    shorter = planned(
        registry, folder, "train.batch_size=4", f"train.sequence_length={match[1]}", "memory.stream=false"
    )
    assert budget.fit(shorter, STATIC - 500 + 100).tokens == int(match[1])


def test_a_refusal_where_no_length_fits(registry, folder):
    made = planned(registry, folder, "quantize=null", "memory.stream=false")
    with pytest.raises(UsageError, match="no shorter rows would fit: use --quantize nf4, a smaller model"):
        budget.fit(made, 100)


def test_batches_filled_by_tokens_are_halved_too(registry, folder):
    made = planned(registry, folder, "train.batch_tokens=256", "train.gradient_checkpointing=none")
    found = budget.fit(made, STATIC + 2 * 32 * A_TOKEN)
    assert (found.plan.recipe.train.batch_tokens, found.plan.recipe.train.gradient_accumulation) == (64, 4)
    assert (found.rows, found.tokens) == (2, 32)


def test_a_rung_that_the_adapter_refuses_is_left(registry: Registry, folder: Path) -> None:
    """Only streaming would fit, and DoRA has to read the weights."""
    assert budget.fit(planned(registry, folder, "train.batch_size=1"), 2000).plan.recipe.memory.stream
    with pytest.raises(UsageError, match="takes at least"):
        budget.fit(planned(registry, folder, "train.batch_size=1", "adapter.use_dora=true"), 2000)


def test_a_finished_run_that_cannot_be_simulated_says_so(registry, folder, monkeypatch):
    def fails(*arguments: Any, **more: Any) -> Estimate:
        raise TypeError("no such tensor")

    monkeypatch.setattr(simulate, "peak_of", fails)
    told: list[str] = []
    data = Encoded(({"input_ids": [1], "length": 1},), (), ())
    rehearsed = Rehearsed((0,), 77)
    found = forecast.compare(planned(registry, folder), None, data, lambda event: told.append(event.text), rehearsed)
    assert found == {"measured_bytes": 77}
    assert told == ["memory: this run cannot be simulated (no such tensor), so it cannot be planned"]


@pytest.mark.parametrize(
    ("simulated", "more", "level"),
    [
        (1000, {}, "info"),
        (1040, {}, "info"),
        (1060, {}, "warning"),
        (940, {}, "warning"),
        (940, {"measured": 1}, "info"),  # of so little a library's own memory is a large share
        (940, {"evaluated_more": True}, "info"),
        (1060, {"evaluated_more": True}, "warning"),  # which explains no plan that is too large
        (940, {"features": True}, "info"),
        (1060, {"features": True}, "info"),
    ],
)
def test_a_plan_that_is_wrong_is_said_and_only_then(registry, folder, monkeypatch, simulated, more, level):
    unit = more.get("measured", 1 << 20)
    monkeypatch.setattr(simulate, "peak_of", lambda *a, **k: Estimate(simulated * unit, {}, "backward", simulated))
    told: list[Any] = []
    features = {FEATURES: None} if more.get("features") else {}
    data = Encoded(({"input_ids": [1], "length": 1, **features},), (), ())
    rehearsed = Rehearsed((0,), 1000 * unit, more.get("evaluated_more", False))
    found = forecast.compare(planned(registry, folder), None, data, told.append, rehearsed)
    assert found == {"simulated_bytes": simulated * unit, "measured_bytes": 1000 * unit}
    assert [event.level for event in told] == [level]
    assert ("report it" in told[0].text) == (level == "warning")
