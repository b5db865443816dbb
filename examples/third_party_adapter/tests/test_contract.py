"""BitFit keeps the contract that first-party adapters keep."""

import pytest
from pefttool_bitfit import BitFit, BitFitOptions

from pefttool.testing import ADAPTER_CHECKS, AdapterCase, adapter_cases, installed

CASES, REFUSED = adapter_cases(BitFit(), installed())
CASES.append(AdapterCase(BitFit(), "encoder", options=BitFitOptions(which="attention")))


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check):
    ADAPTER_CHECKS[check](case)


def test_models_without_biases_are_refused():
    assert "LlamaForCausalLM has none" in REFUSED["bitfit-decoder"]
    assert {case.kind for case in CASES} == {"encoder"}
