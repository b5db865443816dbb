"""The options of `--adapter lora`, and which modules `target_modules` means."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from pefttool import Facts, Options, Problem, suggest

AUTO, ALL_LINEAR = "auto", "all-linear"
#: Mamba's blocks multiply by the weights of these layers instead of calling them (in their kernels, some everywhere):
#: an update beside them would be passed over, and peft refuses it. `in_proj` is called.
UNCALLED = ("out_proj", "x_proj", "dt_proj")
MAMBA = (
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "mamba",
    "mamba2",
    "nemotron_h",
    "zamba2",
)


class LoraOptions(Options):
    r: int = Field(16, ge=1, description="rank of the update")
    lora_alpha: float | None = Field(
        None,
        gt=0,
        description="the update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora); default: what"
        " makes this factor 2",
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the update")
    target_modules: str | tuple[str, ...] = Field(
        AUTO,
        description="`auto` (every linear layer of the backbone, but for what the task leaves as it is: Whisper's"
        " encoder), `all-linear` (that, too), or names, endings (`q_proj`) or patterns (`*.layers.1?.*`) of linear"
        " layers",
    )
    use_rslora: bool = Field(False, description="rank-stabilised scaling (arXiv:2312.03732)")
    use_dora: bool = Field(False, description="train direction and magnitude apart (DoRA, arXiv:2402.09353); slower")
    init_lora_weights: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="how A starts; B starts at zero, so the model starts as the base"
    )

    @property
    def alpha(self) -> float:
        return self.lora_alpha or 2.0 * (self.r**0.5 if self.use_rslora else self.r)

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules


def linear(facts: Facts) -> tuple[str, ...]:
    """The layers that can have an update, as the model calls them."""
    found = facts.used((*facts.linear_modules, *facts.transposed_modules))
    if facts.model_type not in MAMBA:
        return found
    return tuple(name for name in found if name.rpartition(".")[2] not in UNCALLED)


def resolve(options: LoraOptions, facts: Facts) -> list[str]:
    """Full names of the targeted modules, in the model's order."""
    if options.target_modules == AUTO:
        return list(facts.changed(linear(facts)))
    if options.target_modules == ALL_LINEAR:
        return list(linear(facts))
    return [name for name in linear(facts) if any(_matches(pattern, name) for pattern in options.patterns)]


def unmatched(options: LoraOptions, facts: Facts) -> list[Problem]:
    """One Problem for every pattern of `target_modules` that names no linear layer of the backbone."""
    layers = linear(facts)
    if not layers:
        return [Problem("adapter.name", "'lora' needs linear layers, and this model's backbone has none; use 'full'")]
    if options.target_modules in (AUTO, ALL_LINEAR):
        return []
    if not options.patterns:
        return [Problem("adapter.target_modules", "is empty: name at least one linear layer, or use 'all-linear'")]
    known = {AUTO, ALL_LINEAR, *(name.rpartition(".")[2] for name in layers)}
    return [
        Problem("adapter.target_modules", f"{pattern!r} names {_instead(pattern, facts)}: {suggest(pattern, known)}")
        for pattern in options.patterns
        if not any(_matches(pattern, name) for name in layers)
    ]


def _instead(pattern: str, facts: Facts) -> str:
    """What a pattern that matches no linear layer was meant to: experts, perhaps."""
    for tensor in facts.expert_tensors:
        words = tensor.split(".")
        paths = (".".join(words[:length]) for length in range(1, len(words) + 1))
        if "expert" in pattern or any(_matches(pattern, path) for path in paths):
            return f"experts, whose weights are in tensors such as {tensor!r}, and 'lora' trains linear layers only"
    return "no linear layer of the backbone"


def _matches(pattern: str, name: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}") or fnmatchcase(name, pattern)
