"""A row that remembers what was asked of it: which columns, and which fields inside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Recorded(dict[str, Any]):
    """Equal to `values`, lists and mappings inside it likewise; what is read is added to `read`, as `a[].b` is written.

    A key is read when its value is taken, not when it is looked for.
    """

    def __init__(self, values: Mapping[str, Any], read: set[str], inside: str = "") -> None:
        super().__init__({name: _wrapped(value, read, f"{inside}{name}") for name, value in values.items()})
        self._read, self._inside = read, inside

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is not None:
            self._read.add(f"{self._inside}{name}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())  # its own, so that a copy of the row is made by reading it

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (`dict.get` reads unseen)

    def items(self) -> Any:
        return [(name, self[name]) for name in self.keys()]

    def values(self) -> Any:
        return [self[name] for name in self.keys()]


def _wrapped(value: Any, read: set[str], path: str) -> Any:
    if isinstance(value, Mapping):
        return Recorded(value, read, f"{path}.")
    if isinstance(value, list):
        return [_wrapped(item, read, f"{path}[]") for item in value]
    return value
