"""Before step 1: the longest batch, the longest evaluation batch and a save are tried; nothing of it remains.

What would fail after hours fails now: too little memory for the longest rows, too little disk for the checkpoints.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.errors import RunError
from pefttool.api.events import Notice
from pefttool.api.events import Progress as Doing
from pefttool.data.batches import FEATURES, Batches, Position, by_length
from pefttool.inference import packing
from pefttool.inference.evaluate import forward
from pefttool.inference.out_of_memory import out_of_memory
from pefttool.nn.tensors import held_by
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, Progress
from pefttool.runs.run_folder import REHEARSAL
from pefttool.setup.attach import small_buffers
from pefttool.setup.devices import memory_in_use
from pefttool.setup.precision import grad_scaler
from pefttool.setup.random_state import RandomState
from pefttool.training import peak_memory
from pefttool.training.optimisation import make_optimizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.training.loop import Loop

GIB = 1 << 30


@dataclass(frozen=True)
class Rehearsed:
    """The rows of the longest batch, and what the device's allocator had handed out at most (None: not known).

    `evaluated_more`: the batch of held-out rows that was evaluated beside it has more tokens, padding included.
    """

    rows: tuple[int, ...]
    peak_bytes: int | None
    evaluated_more: bool = False


def rehearse(loop: Loop, model: nn.Module) -> Rehearsed:
    """About three times as long as one forward and backward pass over the longest batch.

    Memory that runs out here halves the micro-batches of the run. Says where the company in a batch changes the loss of
    a row. Raises RunError where one row does not fit, or where
    the disk has no room for the adapter and the checkpoints.
    """
    began = time.monotonic()
    loop.emit(Doing(what="rehearsal", done=0, total=1))
    longest = longest_batch(loop.batches, loop.total_steps)
    with undisturbed(loop):
        prime(loop)
        prepare(loop, longest)
        with peak_memory.peak(loop.plan.choice.device, lasting(loop)) as peak:
            loop.optimise(model, [longest] * loop.ranks, "rehearsal")
            held = memory_in_use(loop.plan.choice.device)
            evaluate_longest(loop)
        check_company(loop)
        if loop.accelerator.is_main_process:
            check_disk(loop)
            save(loop)
    held = max(held, memory_in_use(loop.plan.choice.device))
    reset_peak(loop.plan.choice.device)
    loop.emit(Doing(what="rehearsal", done=1, total=1))
    tokens = max(loop.batches.lengths[row] for row in longest)
    text = (
        f"rehearsal: the longest batch ({len(longest)} rows of up to {tokens} tokens), its update, an evaluation batch"
        f" and a save took {time.monotonic() - began:.1f} s; memory held: {held / GIB:.2f} GiB"
    )
    loop.emit(Notice(text=text))
    lengths = sorted((int(e["length"]) for e in loop.held_out.examples), reverse=True)[: loop.settings.batch_size]
    return Rehearsed(tuple(longest), peak.bytes, lengths[0] * len(lengths) > tokens * len(longest))


def prime(loop: Loop) -> None:
    """Let the optimiser make its state, in a step with gradients of zero: the run has it from its second step on."""
    import torch

    for parameter in loop.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)


def prepare(loop: Loop, rows: Sequence[int]) -> None:
    """Features that are computed once are not part of a step."""
    examples = [loop.data.examples[row] for row in rows]
    if FEATURES in examples[0]:
        examples[0][FEATURES].kept.need([e[FEATURES].row for e in examples])


def lasting(loop: Loop) -> list[Tensor]:
    """What is there before the step and after it: the model with all that it holds, and the optimiser's state."""
    state = (value for values in loop.optimizer.state.values() for value in values.values())
    model = loop.parameters.values() if loop.plan.base_is_mapped else held_by(loop.adapted.model)
    return [*model, *(value for value in state if hasattr(value, "untyped_storage"))]


def evaluate_longest(loop: Loop) -> None:
    """One evaluation batch, the one with the longest row; features are not computed for its sake."""
    rows = by_length([e["length"] for e in loop.held_out.examples], loop.settings.batch_size)[0]
    examples = [loop.held_out.examples[row] for row in rows]
    if FEATURES in examples[0] and not examples[0][FEATURES].kept.at_hand([e[FEATURES].row for e in examples]):
        examples = [{name: e[name] for name in e if name != FEATURES} for e in examples]
    forward(
        loop.adapted.model,
        loop.plan.task,
        examples,
        [list(range(len(rows)))],
        loop.base.processor,
        loop.base.setting,
        loop.plan.choice,
        loop.fewer_rows,
    )


def check_company(loop: Loop) -> None:
    """Rows that are padded have the loss that they have alone. (Where they are packed, it was asked before.)"""
    if loop.base.setting.packing or (loop.settings.batch_size == 1 and loop.settings.batch_tokens is None):
        return
    try:
        found = packing.compare(loop.plan, loop.base, loop.adapted.model, loop.data.examples, loop.base.setting)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return  # such rows will be alone in the run, too
    if found is not None:
        text = f"{found}: what is in a batch changes what is learnt of a row; use train.batch_size=1, with"
        loop.emit(Notice(text=f"{text} train.gradient_accumulation for larger steps", level="warning"))


def longest_batch(batches: Batches, total_steps: int) -> list[int]:
    """The micro-batch of the whole run that takes most: by its tokens (padding counts), then by its longest row."""

    def cost(rows: Sequence[int]) -> tuple[int, int]:
        lengths = [batches.lengths[row] for row in rows]
        return (sum(lengths) if batches.packed else max(lengths) * len(lengths)), max(lengths)

    steps = islice(batches.steps(Position()), total_steps)
    return max((rows for _, micro_batches in steps for rows in micro_batches), key=cost)


@contextmanager
def undisturbed(loop: Loop) -> Iterator[None]:
    """What is done within leaves no trace: an optimiser of its own, then parameters, buffers and draws as before."""
    import torch

    random = RandomState(loop.plan.choice.device)
    parameters = {name: p.detach().to("cpu", copy=True) for name, p in loop.parameters.items()}
    live = dict(loop.adapted.model.named_buffers())
    changing = {*small_buffers(loop.adapted.model), *loop.adapted.buffers}
    buffers = [(live[name], live[name].clone()) for name in changing]
    own = loop.optimizer, loop.scaler, loop.non_finite.in_a_row
    loop.optimizer = make_optimizer(loop.adapted, loop.plan.adapter, loop.settings)
    loop.scaler = grad_scaler(loop.plan.choice)
    try:
        yield
    finally:
        loop.optimizer, loop.scaler, loop.non_finite.in_a_row = own
        with torch.no_grad():
            for name, parameter in loop.parameters.items():
                parameter.copy_(parameters[name])
            for buffer, value in buffers:
                buffer.copy_(value)
        random.restore()


def check_disk(loop: Loop) -> None:
    """Raises RunError unless the adapter and every checkpoint of this run have room beside what is there.

    Those that time alone may bring are only warned of: the run may be over before.
    """
    state = {id(t): t for s in loop.optimizer.state.values() for t in s.values() if hasattr(t, "nbytes")}
    trained = sum(p.nbytes for p in loop.parameters.values())
    whole = sum(p.numel() * 4 for p in loop.adapted.model.parameters()) if loop.plan.adapter.trains_base else trained
    settings = loop.settings
    each = trained * (2 if settings.keep_best else 1) + sum(t.nbytes for t in state.values())
    most = settings.keep_checkpoints + 1  # the oldest goes once the newest is there
    asked = loop.total_steps // settings.checkpoint_every if settings.checkpoint_every else 0
    certain = max(1, min(asked, most))  # the rehearsal writes one in any case
    possible = certain if settings.checkpoint_minutes is None else most
    free = shutil.disk_usage(loop.folder).free

    def lacking(count: int) -> str:
        needed = f"the adapter and {count} checkpoint{'s' * (count > 1)} need {(whole + count * each) / GIB:.2f} GiB"
        lower = f"lower train.keep_checkpoints ({settings.keep_checkpoints}), " if count > 1 else ""
        return (
            f"{loop.folder}: {needed}, and {free / GIB:.2f} GiB are free: free some, {lower}or choose another folder"
            " with --out"
        )

    if whole + certain * each > free:
        raise RunError(lacking(certain))
    if whole + possible * each > free:
        loop.emit(Notice(text=lacking(possible), level="warning"))


def save(loop: Loop) -> None:
    """The adapter and a checkpoint, written and removed again. Raises RunError where they cannot be written."""
    scratch: Path = loop.folder / REHEARSAL
    try:
        loop.plan.adapter.save(loop.adapted.model, scratch / "adapter")
        progress = Progress(0, Position(), Best())
        checkpoint.save(scratch, progress, loop.keeper.live())
    except OSError as error:
        raise RunError(
            f"{loop.folder} cannot be written to: {error.strerror or error}: choose another --out"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def reset_peak(device: str) -> None:
    """Count the peak anew: what the rehearsal took is not the run's."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
