"""Every registered quantizer keeps its contract."""

from __future__ import annotations

import pytest

from pefttool.config import registry as registries
from pefttool.testing import check_quantizer

REGISTRY = registries.build()


def test_the_quantizers_are_there() -> None:
    assert {"fp4", "int8", "nf4"} <= set(REGISTRY.quantizers)


@pytest.mark.parametrize("name", REGISTRY.quantizers)
def test_contract(name: str) -> None:
    check_quantizer(REGISTRY.quantizers[name])
