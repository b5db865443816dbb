"""Encoded rows as tensors: a scalar field is one number a row, a list is a slice of one long tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor

SCALARS, LISTS, ENDS = "scalar ", "list ", "ends "
KINDS = {bool: "bool", int: "int64", float: "float64"}


def pack(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | None:
    """The rows as named tensors, or None for fields that are neither plain numbers nor flat lists of them."""
    fields = list(examples[0]) if examples else []
    if any(e.keys() != examples[0].keys() for e in examples):
        return None
    packed: dict[str, Tensor] = {}
    for field in fields:
        values = [e[field] for e in examples]
        if all(type(v) is list for v in values):
            flat = _column(list(chain.from_iterable(values)))
            ends = _column(list(accumulate(map(len, values))))
            assert ends is not None
            columns = {LISTS: flat, ENDS: ends}
        else:
            columns = {SCALARS: _column(values)}
        for kind, column in columns.items():
            if column is None:
                return None
            packed[kind + field] = column
    return packed or None


def _column(values: list[Any]) -> Tensor | None:
    import torch

    kinds = set(map(type, values)) or {int}
    if len(kinds) > 1 or not kinds <= set(KINDS):
        return None
    try:
        column = torch.tensor(values, dtype=getattr(torch, KINDS[kinds.pop()]))
    except (OverflowError, RuntimeError, ValueError):  # an integer of more than 64 bits
        return None
    if column.dtype == torch.int64 and column.int().equal(column):
        return column.int()
    return column


class PackedRows(Sequence[Mapping[str, Any]]):
    """The rows of `pack` again, each made when it is asked for: equal to what was packed, types included."""

    def __init__(self, packed: Mapping[str, Tensor]) -> None:
        self._scalars = {n.removeprefix(SCALARS): t.numpy() for n, t in packed.items() if n.startswith(SCALARS)}
        self._lists = {
            n.removeprefix(LISTS): (t.numpy(), packed[ENDS + n.removeprefix(LISTS)].numpy())
            for n, t in packed.items()
            if n.startswith(LISTS)
        }
        columns = (*self._scalars.values(), *(ends for _, ends in self._lists.values()))
        self._count = min(map(len, columns), default=0)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _PackedRow(self, index % len(self))

    def field(self, name: str, row: int) -> Any:
        if name in self._scalars:
            return self._scalars[name][row].item()
        flat, ends = self._lists[name]
        return flat[ends[row - 1] if row else 0 : ends[row]].tolist()

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self._scalars, *self._lists)


class _PackedRow(Mapping[str, Any]):
    """One row; a field is read when it is asked for."""

    __slots__ = ("_row", "_rows")

    def __init__(self, rows: PackedRows, row: int) -> None:
        self._rows, self._row = rows, row

    def __getitem__(self, name: str) -> Any:
        return self._rows.field(name, self._row)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.fields)

    def __len__(self) -> int:
        return len(self._rows.fields)
