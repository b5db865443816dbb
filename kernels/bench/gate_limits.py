"""Which limits hold for a compiled kernel, and which of them it breaks. The limits are data: see gates.toml."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sass import WARP_SIZE, Report

if TYPE_CHECKING:
    from pefttool_kernels.triton.variants import Variant

LIMITS = Path(__file__).with_name("gates.toml")
REGISTERS = 65536  # of a multiprocessor, on every card here
REGISTER_STEP = 256  # in which a warp gets its registers
RESERVED_SHARED = 1024  # bytes that the driver keeps of every program
TENSOR_CORE = "tensor_core"
#: What an entry may say beside its bounds.
SELECTORS = ("family", "tile", "nested", "arch")
BOUNDS = ("at_most", "at_least")


class LimitsError(ValueError):
    """gates.toml says something that has no meaning; the message says what."""


@dataclass(frozen=True)
class Card:
    """What programs of a compute capability share. Bytes."""

    arch: int
    shared_program: int
    shared_processor: int

    def programs(self, report: Report, num_warps: int) -> int:
        """How many programs of a compiled kernel a multiprocessor holds, by registers and shared memory."""
        per_warp = math.ceil(report.registers * WARP_SIZE / REGISTER_STEP) * REGISTER_STEP
        by_registers = REGISTERS // (per_warp * num_warps)
        return min(by_registers, self.shared_processor // (report.shared + RESERVED_SHARED))


@dataclass(frozen=True)
class Rule:
    """One entry: bounds for the variants that it selects. An empty selector selects all."""

    family: Sequence[str] = ()
    tile: Sequence[str] = ()
    nested: bool | None = None
    arch: Sequence[int] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    tensor_core: str | None = None
    reason: str | None = None  # of an exception

    def selects(self, variant: Variant, arch: int) -> bool:
        return (
            (not self.family or variant.family in self.family)
            and (not self.tile or variant.tile in self.tile)
            and (self.nested is None or self.nested == variant.nested)
            and (not self.arch or arch in self.arch)
        )

    @property
    def names_a_kernel(self) -> bool:
        return bool(self.family and self.tile)


@dataclass(frozen=True)
class Breach:
    """One figure outside its limit, or (value and limit are text) another reason why a kernel must not ship."""

    variant: str
    arch: int
    what: str
    value: float | str
    limit: float | str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.variant} on sm_{self.arch}: {self.what} is {value}, must be {self.limit}"


@dataclass(frozen=True)
class Library:
    """Where another library's kernel for the same product is, and which tiles it has."""

    file: str
    family: str
    kernel: str
    tiles: Sequence[str]


@dataclass(frozen=True)
class Limits:
    cards: Mapping[int, Card]
    rules: Sequence[Rule]
    exceptions: Sequence[Rule]
    library: Library

    def check(self, variant: Variant, arch: int, report: Report, exceptions: bool = True) -> list[Breach]:
        """The limits that a compiled kernel breaks; `exceptions`: whether those take the ordinary limits' place."""
        rules = [rule for rule in self.rules if rule.selects(variant, arch)]
        if not any(rule.names_a_kernel for rule in rules):
            return [Breach(variant.name, arch, "the limit", "missing", f"given for {variant.family} {variant.tile}")]
        if exceptions:
            rules += [rule for rule in self.exceptions if rule.selects(variant, arch)]
        return list(self._breaches(variant, arch, report, rules))

    def _breaches(self, variant: Variant, arch: int, report: Report, rules: Sequence[Rule]) -> Iterable[Breach]:
        card = self.cards[arch]
        for what, limit in {"shared": card.shared_program, **_last(rule.at_most for rule in rules)}.items():
            value = FIGURES[what](variant, card, report)
            if not value <= limit:
                yield Breach(variant.name, arch, what, value, f"at most {limit}")
        for what, limit in _last(rule.at_least for rule in rules).items():
            value = FIGURES[what](variant, card, report)
            if not value >= limit:
                yield Breach(variant.name, arch, what, value, f"at least {limit}")
        core = next((rule.tensor_core for rule in reversed(rules) if rule.tensor_core), None)
        names = report.tensor_core
        if core and not (names and all(name.startswith(core) for name in names)):
            yield Breach(variant.name, arch, TENSOR_CORE, " and ".join(names) or "none", core)

    def stale_exceptions(self, compiled: Sequence[tuple[Variant, int, Report]]) -> list[Rule]:
        """Exceptions that no compiled kernel needs: those that it matches keep the ordinary limits."""
        return [rule for rule in self.exceptions if not self._needed(rule, compiled)]

    def _needed(self, rule: Rule, compiled: Sequence[tuple[Variant, int, Report]]) -> bool:
        spoken = {*rule.at_most, *rule.at_least, *([TENSOR_CORE] if rule.tensor_core else [])}
        return any(
            rule.selects(variant, arch)
            and any(breach.what in spoken for breach in self.check(variant, arch, report, exceptions=False))
            for variant, arch, report in compiled
        )


#: Everything that can be limited, by its name in gates.toml. Without weights, a figure per weight breaks its limit.
FIGURES: Mapping[str, Callable[[Variant, Card, Report], float]] = {
    "registers": lambda variant, card, report: report.registers,
    "stack": lambda variant, card, report: report.stack,
    "spills": lambda variant, card, report: report.spills,
    "shared": lambda variant, card, report: report.shared,
    "instructions": lambda variant, card, report: report.body,
    "instructions_per_mma": lambda variant, card, report: report.instructions_per_mma,
    "instructions_per_weight": lambda variant, card, report: report.body / (variant.weights_per_thread or math.nan),
    "shuffles_per_weight": lambda variant, card, report: report.shuffles / (variant.weights_per_thread or math.nan),
    "async_copies": lambda variant, card, report: report.async_copies,
    "wide_loads": lambda variant, card, report: report.wide_loads,
    "wide_stores": lambda variant, card, report: report.wide_stores,
    "ldmatrix": lambda variant, card, report: report.ldmatrix,
    "barriers": lambda variant, card, report: report.barriers,
    "programs": lambda variant, card, report: card.programs(report, variant.num_warps),
}


def _last(bounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's last bound."""
    merged: dict[str, float] = {}
    for some in bounds:
        merged.update(some)
    return merged


def load(path: Path = LIMITS) -> Limits:
    """LimitsError for an unknown key or figure, or an exception without a reason."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    exceptions = [_rule(entry, path) for entry in data.get("exception", [])]
    for exception in exceptions:
        if not exception.reason:
            raise LimitsError(f"{path}: an exception needs a reason: {exception}")
    cards = {entry["arch"]: Card(**entry) for entry in data["card"]}
    return Limits(cards, [_rule(entry, path) for entry in data["limits"]], exceptions, Library(**data["library"]))


def _rule(entry: dict[str, Any], path: Path) -> Rule:
    unknown = set(entry) - {*SELECTORS, *BOUNDS, TENSOR_CORE, "reason"}
    unknown |= {name for bound in BOUNDS for name in entry.get(bound, {}) if name not in FIGURES}
    if unknown:
        raise LimitsError(f"{path}: {', '.join(sorted(unknown))}: no such key or figure, in {entry}")
    for key in ("family", "tile", "arch"):
        if key in entry and not isinstance(entry[key], list):
            entry = {**entry, key: [entry[key]]}
    return Rule(**entry)
