"""Every registered quantizer keeps its contract."""

from __future__ import annotations

from typing import Any

import pytest

from pefttool.config import registry as registries
from pefttool.testing import check_quantizer

REGISTRY = registries.build()


def test_the_quantizers_are_there() -> None:
    assert {"fp4", "int8", "nf4"} <= set(REGISTRY.quantizers)


@pytest.mark.parametrize("name", REGISTRY.quantizers)
def test_contract(name: str) -> None:
    check_quantizer(REGISTRY.quantizers[name])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nf4", {"double_quant": False}),
        ("fp4", {"double_quant": False, "backend": "tiles"}),
        ("nf4", {"backend": "bitsandbytes"}),
        ("int8", {"backend": "tiles", "threshold": 0}),
    ],
    ids=str,
)
def test_with_other_options(name: str, options: dict[str, Any]) -> None:
    quantizer = REGISTRY.quantizers[name]
    check_quantizer(quantizer, quantizer.Options(**options))
