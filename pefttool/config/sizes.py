"""Amounts of memory as people write them."""

from __future__ import annotations

import re

UNITS = {"B": 1}
for _power, _letter in enumerate("KMGT", 1):
    UNITS[f"{_letter}iB"] = 1024**_power
    UNITS[f"{_letter}B"] = 1000**_power
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", re.ASCII)
_UNITS_BY_CASE = {unit.lower(): size for unit, size in UNITS.items()}


def parse(text: str) -> int:
    """Bytes: `6GiB`, `512 MiB`, `1.5gb`. ValueError, saying what is expected, for anything else and for no byte."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS_BY_CASE.get(match[2].lower()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise ValueError("an amount of memory: a number and its unit, such as 6GiB")
    return size


def show(size: int) -> str:
    """`5.32 GiB`, `812 MiB`, `37.0 KiB`: three digits, which is what a person compares."""
    power = min(4, max(0, (size.bit_length() - 1) // 10))
    value = size / 1024**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {'KMGT'[power - 1] + 'iB' if power else 'B'}"
