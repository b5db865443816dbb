"""How far two models' answers to the same rows are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Positions whose probabilities are in memory at once.
TOGETHER = 16
#: A single difference may be as many times as large as is allowed for all of them together.
RARE = 5
#: How far two models that should be one may be apart, by the coarser of the dtypes that weights are stored in and sums
#: are rounded to. Measured on SmolLM2-135M (docs/merging.md): bfloat16 0.032 for a right merge, 0.33 for one into other
#: weights; float16 0.0008; float32 2e-6.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


@dataclass(frozen=True)
class Agreement:
    """Over `rows` rows and all of their outputs.

    largest     the largest difference of two outputs; infinite where one is no number
    scale       the largest output
    typical     root of the mean squared difference, as a share of that of the outputs
    divergence  KL divergence of the class probabilities, nats, mean over positions; None without class logits
    top1        share of the positions at which both give the same class the most; None without class logits
    effect      mean absolute difference between the first model and the base, where the base was asked, too
    share       of that effect, what the second model has: 1 if it answers as the first, 0 if as the base
    """

    rows: int
    largest: float
    scale: float
    typical: float
    divergence: float | None = None
    top1: float | None = None
    effect: float | None = None
    share: float | None = None

    @property
    def relative(self) -> float:
        return self.largest / self.scale if self.scale else float("inf" if self.largest else 0)

    def within(self, tolerance: float) -> bool:
        """Whether `typical` is, and no single output is further off than chance makes one of a million."""
        return self.typical <= tolerance and self.relative <= RARE * tolerance

    def __str__(self) -> str:
        parts = [f"difference {self.typical:.2g} of the outputs' size, at most {self.largest:.2g} of {self.scale:.3g}"]
        if self.divergence is not None:
            parts.append(f"KL {self.divergence:.2g}, top-1 agreement {self.top1:.1%}")
        return ", ".join([*parts, f"{self.rows} rows"])

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "difference": self.typical,
            "max_difference": self.largest,
            "largest_output": self.scale,
            "kl_divergence": self.divergence,
            "top1_agreement": self.top1,
            "effect": self.effect,
            "share_of_effect": self.share,
        }


def compare(
    first: Iterable[Mapping[str, Tensor]],
    second: Iterable[Mapping[str, Tensor]],
    base: Iterable[Mapping[str, Tensor]] | None = None,
    classes: bool = True,
) -> Agreement:
    """Compare answers row by row. `classes`: outputs called logits are of classes that exclude each other (never where
    there are boxes).

    Raises ValueError if the two do not answer with the same tensors.
    """
    rows = positions = same = 0
    largest = scale = divergence = 0.0
    along = length = moved = count = apart = size = 0.0
    bases = iter(base) if base is not None else None
    for one, other in zip(first, second, strict=True):
        if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
            raise ValueError(f"one answers with {_described(one)}, the other with {_described(other)}")
        rows += 1
        was = next(bases) if bases is not None else None
        exclusive = classes and not any("boxes" in name for name in one)
        for name, a in one.items():
            b = other[name]
            largest = max(largest, _difference(a, b))
            scale = max(scale, _magnitude(a))
            apart += float(_finite(a - b).square().sum())
            size += float(_finite(a).square().sum())
            if exclusive and name.endswith("logits") and a.ndim > 1 and a.shape[-1] > 1:
                n, summed, agreed = _probabilities(a.flatten(0, -2), b.flatten(0, -2))
                positions, divergence, same = positions + n, divergence + summed, same + agreed
            if was is not None:
                by_adapter, by_other = _finite(a - was[name]), _finite(b - was[name])
                along += float((by_adapter * by_other).sum())
                length += float(by_adapter.square().sum())
                moved += float(by_adapter.abs().sum())
                count += a.numel()
    return Agreement(
        rows,
        largest,
        scale,
        (apart / size) ** 0.5 if size else float("inf" if apart else 0),
        divergence / positions if positions else None,
        same / positions if positions else None,
        moved / count if count else None,
        along / length if length else None,
    )


def _described(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(t.shape)}" for name, t in outputs.items()) or "nothing"


def _difference(a: Tensor, b: Tensor) -> float:
    """Infinities of one sign are equal (a masked class)."""
    import torch

    if not a.numel():
        return 0.0
    apart = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
    return float(apart.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def _magnitude(a: Tensor) -> float:
    finite = _finite(a)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _finite(a: Tensor) -> Tensor:
    return a.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _probabilities(a: Tensor, b: Tensor) -> tuple[int, float, int]:
    """(positions, summed KL(a || b), positions with one best class) of logits `[N, C]`."""
    summed, agreed = 0.0, 0
    for at in range(0, len(a), TOGETHER):
        x, y = (t[at : at + TOGETHER].double().log_softmax(-1) for t in (a, b))
        likely = x.exp()
        summed += float((likely * (x - y)).masked_fill(likely == 0, 0.0).sum())  # a masked class is minus infinity
        agreed += int((x.argmax(-1) == y.argmax(-1)).sum())
    return len(a), summed, agreed
