"""What did not fit while rows were answered: tasks tell it, and the command that asked for the answers counts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pefttool.api.values import Setting

__all__ = ["tell", "unended"]


@dataclass
class Cuts:
    """Rows whose input lost its end (or, before an answer, its beginning), and rows whose answer did."""

    inputs: int = 0
    answers: int = 0

    def line(self, rows: int, setting: Setting) -> str | None:
        """What the user should know of these answers to `rows` rows, or None."""
        said = []
        if self.inputs:
            most = setting.sequence_length
            said.append(f"{self.inputs} of {rows} inputs were cut to {most} tokens, the run's train.sequence_length")
        if self.answers:
            most = setting.generation["max_new_tokens"]
            said.append(
                f"{self.answers} of {rows} answers were cut at generation.max_new_tokens={most}: raise it with -o"
                " generation.max_new_tokens=N"
            )
        return "; ".join(said) or None


_counted: ContextVar[Cuts | None] = ContextVar("cuts", default=None)


@contextmanager
def counted() -> Iterator[Cuts]:
    """Counts what tasks tell within."""
    cuts = Cuts()
    token = _counted.set(cuts)
    try:
        yield cuts
    finally:
        _counted.reset(token)


def tell(inputs: int = 0, answers: int = 0) -> None:
    """Add to what is counted, where anybody counts."""
    cuts = _counted.get()
    if cuts is not None:
        cuts.inputs += inputs
        cuts.answers += answers


def unended(tokens: Tensor, model: Any, most: int | None, ends: Sequence[int] = ()) -> int:
    """Rows of generated `tokens` `[B, N]`, without what was given to the model, that hold `most` and no end: none of
    `ends`, where generation was told to stop, or without them of those that the model's settings name."""
    import torch

    if most is None or tokens.shape[1] < most:
        return 0
    configured = (getattr(getattr(model, name, None), "eos_token_id", None) for name in ("generation_config", "config"))
    end: Any = list(ends) or next((e for e in configured if e is not None), [])
    stops = torch.tensor(end if isinstance(end, list) else [end], device=tokens.device)
    return int((~torch.isin(tokens, stops).any(1)).sum())
