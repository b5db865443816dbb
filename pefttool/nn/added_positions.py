"""An adapter that puts positions in front of the text (prompt tuning) moves the text: a task is given the text's alone.

What a task says of positions (`logits_to_keep`), and the logits that it gets, are of the text as it encoded it; this is
the one place where they become the model's. `shifted` and `of_text` stand alone: a process without pefttool has a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pefttool.api.adapter import Adapter

if TYPE_CHECKING:
    from torch import nn


def shifted(named: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The call's arguments with `logits_to_keep`, where it is a tensor of positions, behind `count` others.

    A number means the last positions: those are the text's.
    """
    kept: Any = named.get("logits_to_keep")
    return {**named, "logits_to_keep": kept + count} if count and hasattr(kept, "shape") else dict(named)


def of_text(output: Any, named: Mapping[str, Any], count: int) -> Any:
    """The output without the first `count` positions of its `[B, count + T, V]` logits, unless some were chosen.

    Raises ValueError for logits of another number of positions.
    """
    kept = named.get("logits_to_keep")
    if not count or hasattr(kept, "shape") or kept or named.get("past_key_values") is not None:
        return output  # nothing added, or chosen positions, or a text that goes on behind what a cache holds
    length = named["input_ids"].shape[1]
    found = output.logits.shape[1]
    if found != length + count:
        raise ValueError(f"logits of {found} positions for {length} tokens, and {count} added positions are declared")
    output.logits = output.logits[:, count:]
    return output


class Shift:
    """The hooks of one model; not `on` while its adapter is switched off."""

    def __init__(self, count: int) -> None:
        self.count, self.on = count, True

    def before(
        self, model: nn.Module, placed: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return (placed, shifted(named, self.count)) if self.on else None

    def after(self, model: nn.Module, placed: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return of_text(output, named, self.count) if self.on else output


_shifts: WeakKeyDictionary[nn.Module, Shift] = WeakKeyDictionary()


def install(model: nn.Module, count: int) -> None:
    """From now on `model`, whose adapter adds `count` positions, is called and answers as if there were none."""
    if count:
        shift = _shifts[model] = Shift(count)
        model.register_forward_pre_hook(shift.before, with_kwargs=True)
        model.register_forward_hook(shift.after, with_kwargs=True)


@contextmanager
def disabled(adapter: Adapter, model: nn.Module) -> Iterator[None]:
    """A context in which the adapter is switched off, and with it the positions that it adds."""
    shift = _shifts.get(model)
    with adapter.disabled(model):
        if shift is not None:
            shift.on = False
        try:
            yield
        finally:
            if shift is not None:
                shift.on = True
