"""Amounts of memory: what people write is read, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefttool.config import sizes


@given(st.integers(1, 10**6), st.sampled_from(sorted(sizes.UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_a_number_and_its_unit(number: int, unit: str, space: str, lower: bool) -> None:
    written = f"{number}{space}{unit.lower() if lower else unit}"
    assert sizes.parse(written) == number * sizes.UNITS[unit]


@pytest.mark.parametrize(
    "text", ["", "6", "GiB", "-1GiB", "0GiB", "0.1B", "1.GiB", "6 Gi B", "6GiBB", "1e3MiB", "٣GiB"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 6GiB"):
        sizes.parse(text)


def test_fractions() -> None:
    assert sizes.parse("1.5GiB") == 3 << 29 and sizes.parse("1.5gb") == 1_500_000_000


@given(st.integers(0, 1 << 50))
def test_what_is_shown_is_within_half_a_percent(size: int) -> None:
    shown = sizes.show(size)
    assert len(shown) <= len("1023 MiB") or size >= 1 << 50
    assert shown == "0 B" if size == 0 else abs(sizes.parse(shown) - size) <= 0.0051 * size
