"""Which adapter a model instance carries: remembered on the instance, so that a second one is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pefttool.api.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["claim", "held_by", "release"]

ATTRIBUTE = "_pefttool_claim"


@dataclass(frozen=True)
class Claim:
    """`parameters` are plain names that an adapter without files of its own (head, full) has to save."""

    adapter: str
    parameters: tuple[str, ...] = ()


def claim(model: nn.Module, adapter: str, parameters: Iterable[str] = ()) -> None:
    """Mark `model` as carrying `adapter`. Raises UsageError if it already carries one.

    peft's wrappers pass unknown attributes on to the model inside, so wrapper and base answer alike.
    """
    held = held_by(model)
    if held is not None:
        raise UsageError(
            f"adapter {adapter!r} cannot be attached: this model already carries {held.adapter!r}; merge that first, or"
            " load the base model again"
        )
    setattr(model, ATTRIBUTE, Claim(adapter, tuple(parameters)))


def held_by(model: nn.Module) -> Claim | None:
    """The claim on `model` (wrapped or not), or None."""
    held = getattr(model, ATTRIBUTE, None)
    return held if isinstance(held, Claim) else None


def release(model: nn.Module) -> None:
    """Forget the claim on a plain model, which has been merged: the next adapter may come."""
    if ATTRIBUTE in vars(model):
        delattr(model, ATTRIBUTE)
