"""`memory.budget`: the settings closest to the recipe's that keep a run within it, or what would.

Nothing here changes what is learnt: micro-batches are halved while accumulation doubles, and the techniques only move
or recompute. They are tried in the order of what they cost in time, each on top of those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pefttool.api.errors import UsageError
from pefttool.config import sizes
from pefttool.forecast import forecast
from pefttool.forecast.forecast import Forecast, Known
from pefttool.setup import plan
from pefttool.setup.plan import Plan

#: What is tried, each on top of those before it: (key, value, as it is said).
LADDER: tuple[tuple[str, Any, str], ...] = (
    ("train.gradient_checkpointing", "non-reentrant", "activations recomputed"),
    ("memory.offload", ("embeddings",), "embeddings on the host"),
    ("memory.offload", ("activations", "embeddings"), "activations on the host, too"),
    ("memory.stream", True, "frozen blocks streamed"),
)
SHORTEST = 32

Say = Callable[[str], object]


@dataclass(frozen=True)
class _Candidate:
    plan: Plan
    said: tuple[str, ...]


def fit(given: Plan, budget: int, data: Known | None = None, say: Say = lambda text: None) -> Forecast:
    """The forecast of the first plan on the ladder that takes at most `budget` bytes, everything counted.

    `data` are rows encoded before; `say` is told what is simulated. Raises UsageError with the least that the recipe
    takes, and what would fit.
    """
    least: Forecast | None = None
    said: tuple[str, ...] = ()
    for candidate in _ladder(given):
        smallest = _simulate(candidate.plan, _divisor(candidate.plan), data, say)
        if least is None or smallest.total_bytes < least.total_bytes:
            least, said = smallest, candidate.said
        if smallest.total_bytes <= budget:
            found = _largest_within(candidate.plan, smallest, budget, data, say)
            return replace(found, plan=_noticed(given, found.plan, candidate.said, budget))
    assert least is not None
    raise UsageError(_refusal(given, least, said, budget, say))


def _ladder(given: Plan) -> Iterator[_Candidate]:
    """The plan as it is, then with one technique more at a time; what the user settled or the plan refuses is left."""
    known = set(map(str, plan.check(given)))
    candidate = _Candidate(given, ())
    yield candidate
    for key, value, text in LADDER:
        if _settled(given, key):
            continue
        changed = _with(candidate.plan, {key: value})
        if set(map(str, plan.check(changed))) <= known:
            candidate = _Candidate(changed, (*candidate.said, text))
            yield candidate


def _settled(given: Plan, key: str) -> bool:
    section, _, name = key.partition(".")
    written = given.recipe.given.get(section)
    return isinstance(written, Mapping) and name in written


def _with(given: Plan, changes: Mapping[str, Any]) -> Plan:
    """The plan with these recipe keys changed: `{"train.batch_size": 4}`."""
    recipe = given.recipe
    for key, value in changes.items():
        section, _, name = key.partition(".")
        recipe = replace(recipe, **{section: getattr(recipe, section).model_copy(update={name: value})})
    return replace(given, recipe=recipe, facts=replace(given.facts, **plan.decided(recipe)))


def _divided(given: Plan, by: int) -> Plan:
    """Micro-batches `by` times smaller, as many times more of them: the objective of a step stays what it was."""
    train = given.recipe.train
    accumulation = train.gradient_accumulation * by
    if train.batch_tokens is None:
        return _with(given, {"train.batch_size": train.batch_size // by, "train.gradient_accumulation": accumulation})
    return _with(given, {"train.batch_tokens": train.batch_tokens // by, "train.gradient_accumulation": accumulation})


def _divisor(given: Plan) -> int:
    """The most that micro-batches can be divided by: a power of two that leaves whole rows."""
    rows, _ = forecast.largest(given.recipe.train)
    by = 1
    while rows % (by * 2) == 0:
        by *= 2
    return by


def _simulate(given: Plan, by: int, data: Known | None, say: Say) -> Forecast:
    made = forecast.make(_divided(given, by) if by > 1 else given, data=data)
    say(f"simulated: {made.rows} x {made.tokens} tokens take {sizes.show(made.total_bytes)}")
    return made


def _largest_within(given: Plan, smallest: Forecast, budget: int, data: Known | None, say: Say) -> Forecast:
    """The largest micro-batch that fits: the peak grows linearly with it, so two points tell where to look."""
    by = _divisor(given)
    if by == 1:
        return smallest
    whole = _simulate(given, 1, data, say)
    if whole.total_bytes <= budget:
        return whole
    a_row = (whole.total_bytes - smallest.total_bytes) / max(1, whole.rows - smallest.rows)
    rows = smallest.rows + (budget - smallest.total_bytes) / max(a_row, 1e-9)
    divisor = 2
    while divisor < by and whole.rows / divisor > rows:
        divisor *= 2
    while divisor < by:
        found = _simulate(given, divisor, data, say)
        if found.total_bytes <= budget:
            return found
        divisor *= 2
    return smallest


def _noticed(given: Plan, found: Plan, said: tuple[str, ...], budget: int) -> Plan:
    before, after = given.recipe.train, found.recipe.train
    changes = list(said)
    if after.gradient_accumulation != before.gradient_accumulation:
        size = f"{after.batch_tokens} tokens" if after.batch_tokens else f"{after.batch_size} rows"
        changes.append(f"micro-batches of {size}, {after.gradient_accumulation} in a step")
    text = f"within {sizes.show(budget)}: {'; '.join(changes) or 'nothing had to be changed'}"
    return replace(found, notices=(*found.notices, text))


def _refusal(given: Plan, least: Forecast, said: tuple[str, ...], budget: int, say: Say) -> str:
    how = "; ".join((f"{least.rows} x {least.tokens} tokens", *said))
    needed = f"memory.budget: {sizes.show(budget)}: this recipe takes at least {sizes.show(least.total_bytes)} ({how})"
    length = _length_within(least, budget, say)
    if length is not None:
        return f"{needed}; train.sequence_length={length} would fit, or a budget of {sizes.show(least.total_bytes)}"
    quantize = "" if given.quantization is not None or given.adapter.trains_base else "--quantize nf4, "
    return f"{needed}; no shorter rows would fit: use {quantize}a smaller model, or a larger budget"


def _length_within(least: Forecast, budget: int, say: Say) -> int | None:
    """The longest half, quarter, ... of the rows' length that fits, or None."""
    length = least.tokens // 2
    while length >= SHORTEST:
        shorter = _with(least.plan, {"train.sequence_length": length})
        if _simulate(shorter, 1, None, say).total_bytes <= budget:
            return length
        length //= 2
    return None
