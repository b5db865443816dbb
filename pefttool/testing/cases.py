"""Where an adapter has to keep its contract: on every tiny model, plain and with every quantizer, that it accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from pefttool.api.adapter import Adapter
from pefttool.api.facts import Facts
from pefttool.api.quantizer import Quantizer
from pefttool.config.registry import Registry
from pefttool.testing.adapters import ADAPTER_CHECKS
from pefttool.testing.bench import AdapterCase, ContractViolation, load_base
from pefttool.testing.toys import TOYS

KINDS = ("encoder", "decoder")


def adapter_cases(
    adapter: Adapter, registry: Registry | None = None, kinds: Sequence[str] = KINDS, options: Any = None
) -> tuple[list[AdapterCase], dict[str, str]]:
    """(cases, refusals): the adapter on every kind of model, plain and with each quantizer of `registry`.

    Cases that the adapter's `check` or the quantizer refuses are left out, with the reason. Raises ContractViolation
    for a refusal without a reason.
    """
    quantizers: list[Quantizer | None] = [None]
    if registry is not None:
        quantizers += registry.quantizers.values()
    return _sort([AdapterCase(adapter, kind, quantizer, options) for kind in kinds for quantizer in quantizers])


def check_adapter(
    adapter: Adapter, options: Any = None, *, quantizer: Quantizer | None = None, models: Sequence[str] = KINDS
) -> dict[str, str]:
    """Run every check on each of `models`, with `quantizer` if given; returns the refused cases with their reasons.

    Raises ContractViolation at the first broken check, and for an adapter that refuses every unquantised model.
    """
    cases, refused = _sort([AdapterCase(adapter, kind, quantizer, options) for kind in models])
    if not cases and quantizer is None:
        raise ContractViolation(f"adapter {adapter.name!r} refuses every model: {'; '.join(refused.values())}")
    for case in cases:
        for check in ADAPTER_CHECKS.values():
            check(case)
    return refused


def _sort(cases: Sequence[AdapterCase]) -> tuple[list[AdapterCase], dict[str, str]]:
    accepted, refused = [], {}
    for case in cases:
        reason = _refusal(case)
        if reason is None:
            accepted.append(case)
            continue
        case.require(len(reason) > 20, f"is refused without a reason that helps: {reason!r}")
        refused[str(case)] = reason
    return accepted, refused


def _refusal(case: AdapterCase) -> str | None:
    """Why this case is refused, as `plan` would find before any weight is loaded, or None."""
    facts = replace(_facts(case.kind), quantizer=case.quantizer.name if case.quantizer else None)
    if case.quantization is not None:
        if case.adapter.trains_base:
            return f"{case.adapter.name!r} trains the weights that {case.quantization.name!r} freezes"
        reason = case.quantization.refuses(facts)
        if reason is not None:
            return reason
    added, task = case.adapter.added_positions(case.chosen, facts), TOYS[case.kind]
    if added and not task.allows_added_positions:
        return f"it puts {added} positions before the text, which {task.name!r} does not allow"
    problems = case.adapter.check(case.chosen, facts)
    return "; ".join(map(str, problems)) if problems else None


@cache
def _facts(kind: str) -> Facts:
    return load_base(kind)[1]
