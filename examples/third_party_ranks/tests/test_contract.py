"""The adapter keeps the contract that first-party adapters keep, before directions are dropped and after."""

import pytest
from pefttool_ranks import Ranks, RanksOptions

from pefttool.testing import ADAPTER_CHECKS, AdapterCase, adapter_cases, installed

CASES, REFUSED = adapter_cases(Ranks(), installed())
CASES += [AdapterCase(Ranks(), kind, options=RanksOptions(rank=4, drop_after=2)) for kind in ("encoder", "decoder")]


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check):
    ADAPTER_CHECKS[check](case)


def test_nothing_is_refused():
    assert not REFUSED and len(CASES) > 4
