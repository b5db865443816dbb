"""The ablation ladder: every technique added to those before it, so that each row says what one of them brought.

Above its top are the recipe's knobs, each alone on the whole stack. What only a GPU can do is simulated in
`knobs.py`, not timed.
"""

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

LADDERS: dict[str, tuple[Step, ...]] = {
    "lm": (BUCKETS, PACKING, ATTENTION, TILES, LOSS, ALLOCATOR, LORA, NORMS),
    "lm-nf4": (BUCKETS, PACKING, ATTENTION, TILES, LOSS, ALLOCATOR, FOUR_BIT, LORA, NORMS),
    "classification": (BUCKETS, ATTENTION, DROPOUT, ALLOCATOR, LORA),
    "head": (BUCKETS, ALLOCATOR),
}
#: What a recipe may ask for on top of all that.
KNOBS: tuple[Step, ...] = (
    Step("all, and recomputing activations", on=("-o", "train.gradient_checkpointing=non-reentrant")),
    Step("all, and recomputing by the reentrant way", on=("-o", "train.gradient_checkpointing=reentrant")),
    Step("all, and AdamW in 8 bits", on=("-o", "train.optimizer=adamw_8bit")),
    Step("all, and torch.compile", on=("-o", "train.compile=true")),
)


def contestants(job: Job, data: Data) -> dict[str, Callable[[int], Measured]]:
    """The peer, our loop with everything off, then one technique more a row; then each knob on all of them."""
    model = local_model(job)
    found: dict[str, Callable[[int], Measured]] = {
        PEER: lambda seed: cells.peer(job, data, model, seed, tuned=True),
    }
    steps = LADDERS[job.name]
    for height in range(len(steps) + 1):
        later = steps[height:]
        names = tuple(step.name for step in later if step.name)
        extra = tuple(part for step in later for part in step.off)
        found[steps[height - 1].title if height else LOOP] = lambda seed, names=names, extra=extra: cells.pefttool(
            job, data, model, seed, extra, names
        )
    for knob in KNOBS if job.kind != "head" else ():
        found[knob.title] = lambda seed, on=knob.on: cells.pefttool(job, data, model, seed, on)
    return found


def table(job: Job, results: Mapping[str, Sequence[Measured]]) -> str:
    """Speed, its ratio to the row above (a knob's: to all techniques together), round by round, and peak memory."""
    lines = [
        f"### {job.title}: what each technique brings",
        "",
        f"| | {job.unit}/s | over the row above | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    knobs = {knob.title for knob in KNOBS}
    above: Sequence[Measured] = ()
    for name, runs in results.items():
        ratios = [mine.speed / its.speed for mine, its in zip(runs, above, strict=False)]
        speed = statistics.median(run.speed for run in runs)
        peak = statistics.median(run.peak for run in runs)
        of_all = " of all" if name in knobs else ""
        lines.append(f"| {name} | {speed:.0f} | {_gain(ratios, of_all)} | {peak:.0f} |")
        above = above if name in knobs else runs
    return "\n".join(lines)


def _gain(ratios: Sequence[float], of: str = "") -> str:
    """Median and range; a range with 1 in it says nothing about the technique, and is marked."""
    if not ratios:
        return ""
    text = f"{statistics.median(ratios):.2f}{of}"
    if len(ratios) > 1:
        text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    return text + (" *unresolved*" if len(ratios) > 1 and min(ratios) <= 1 <= max(ratios) else "")
