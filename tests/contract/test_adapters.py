"""Every registered adapter, on an encoder and a decoder, plain and with every quantizer, keeps its contract."""

from __future__ import annotations

import pytest

from pefttool.config import registry as registries
from pefttool.testing import ADAPTER_CHECKS, AdapterCase, adapter_cases

REGISTRY = registries.build()
FOUND = {name: adapter_cases(REGISTRY.adapters[name], REGISTRY) for name in REGISTRY.adapters}
CASES = [case for cases, _ in FOUND.values() for case in cases]


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case: AdapterCase, check: str) -> None:
    ADAPTER_CHECKS[check](case)


def test_every_adapter_runs_somewhere_and_every_refusal_has_a_reason() -> None:
    assert {"full", "head", "lora", "prefix"} <= set(FOUND)
    for name, (cases, refused) in FOUND.items():
        assert {case.kind for case in cases if case.quantizer is None} == {"encoder", "decoder"}, name
        assert all(len(reason) > 20 for reason in refused.values()), refused
    quantised = {case.adapter.name for case in CASES if case.quantizer is not None}
    assert {"head", "lora", "prefix"} <= quantised and "full" not in quantised
