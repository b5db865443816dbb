"""The ablation ladder: every technique added to those before it, so that each row says what one of them brought."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cells
from cells import Measured
from jobs import Data, Job, local_model

PEER, LOOP = "peer, tuned", "our loop: rows padded, in random order"


@dataclass(frozen=True)
class Step:
    """A technique: what the table calls it, its name in `rung.OFF`, or the recipe's option that it is off with."""

    title: str
    name: str = ""
    off: tuple[str, ...] = ()
    on: tuple[str, ...] = ()


BUCKETS = Step("+ batches of rows of similar length", "buckets")
PACKING = Step("+ packed instead of padded, attention row by row", off=("-o", "train.packing=false"))
ATTENTION = Step("+ attention as plain products", "attention")
TILES = Step("+ its queries in tiles, nothing computed that is hidden", "tiles")
LOSS = Step("+ cross-entropy without logits", "loss")
DROPOUT = Step("+ dropout that draws four at a time", "dropout")
ALLOCATOR = Step("+ freed memory kept for the next step", "allocator")
FOUR_BIT = Step("+ 4-bit weights dequantised in tiles", "four-bit")
LORA = Step("+ LoRA inside the product", "lora")
NORMS = Step("+ RMSNorm as one node of the graph", "norms")
CHECKPOINTING = Step(
    "and with gradient checkpointing (for memory)", on=("-o", "train.gradient_checkpointing=non-reentrant")
)

LADDERS: dict[str, tuple[Step, ...]] = {
    "lm": (BUCKETS, PACKING, ATTENTION, TILES, LOSS, ALLOCATOR, LORA, NORMS, CHECKPOINTING),
    "lm-nf4": (BUCKETS, PACKING, ATTENTION, TILES, LOSS, ALLOCATOR, FOUR_BIT, LORA, NORMS, CHECKPOINTING),
    "classification": (BUCKETS, ATTENTION, DROPOUT, ALLOCATOR, LORA, CHECKPOINTING),
    "head": (BUCKETS, ALLOCATOR),
}


def contestants(job: Job, data: Data) -> dict[str, Callable[[int], Measured]]:
    """The peer, our loop with everything off, then one technique more a row; the last row adds what costs time."""
    model = local_model(job)
    found: dict[str, Callable[[int], Measured]] = {
        PEER: lambda seed: cells.peer(job, data, model, seed, tuned=True),
    }
    steps = LADDERS[job.name]
    for height in range(len(steps) + 1):
        on, later = steps[:height], steps[height:]
        names = tuple(step.name for step in later if step.name)
        extra = tuple(part for step in later for part in step.off) + tuple(part for step in on for part in step.on)
        found[on[-1].title if on else LOOP] = lambda seed, names=names, extra=extra: cells.pefttool(
            job, data, model, seed, extra, names
        )
    return found


def table(job: Job, results: Mapping[str, Sequence[Measured]]) -> str:
    """Speed, its ratio to the row above, round by round, and peak memory."""
    lines = [
        f"### {job.title}: what each technique brings",
        "",
        f"| | {job.unit}/s | over the row above | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    above: Sequence[Measured] = ()
    for name, runs in results.items():
        ratios = [mine.speed / its.speed for mine, its in zip(runs, above, strict=False)]
        speed = statistics.median(run.speed for run in runs)
        peak = statistics.median(run.peak for run in runs)
        lines.append(f"| {name} | {speed:.0f} | {_gain(ratios)} | {peak:.0f} |")
        above = runs
    return "\n".join(lines)


def _gain(ratios: Sequence[float]) -> str:
    """Median and range; a range with 1 in it says nothing about the technique, and is marked."""
    if not ratios:
        return ""
    text = f"{statistics.median(ratios):.2f}"
    if len(ratios) > 1:
        text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    return text + (" *unresolved*" if len(ratios) > 1 and min(ratios) <= 1 <= max(ratios) else "")
