"""Before step 1: the longest batch, the longest evaluation batch and a save are tried; nothing of it remains.

What would fail after hours fails now: too little memory for the longest rows, too little disk for the checkpoints.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.errors import RunError
from pefttool.api.events import Progress
from pefttool.data.batches import Batches, Position, by_length
from pefttool.inference import packing
from pefttool.inference.evaluate import forward
from pefttool.inference.out_of_memory import out_of_memory
from pefttool.inference.predictor import FEATURES, without_features
from pefttool.nn.tensors import held_by
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, TrainingProgress
from pefttool.runs.run_folder import REHEARSAL
from pefttool.setup.attach import small_buffers
from pefttool.setup.device_memory import memory_in_use
from pefttool.setup.precision import grad_scaler
from pefttool.setup.random_state import RandomState
from pefttool.training import peak_memory
from pefttool.training.optimisation import make_optimizer
from pefttool.training.state import Rehearsed, TrainingState

if TYPE_CHECKING:
    from torch import Tensor


GIB = 1 << 30


def rehearse(state: TrainingState) -> Rehearsed:
    """About three times as long as one forward and backward pass over the longest batch.

    Memory that runs out here halves the micro-batches of the run. A warning says where the other rows of a
    batch change the loss of a row. Raises RunError where one row does not fit, or where the disk has no room for the
    adapter and the checkpoints.
    """
    began = time.monotonic()
    state.session.emit(Progress(what="rehearsal", done=0, total=1))
    longest = longest_batch(state.batches, state.total_steps)
    with undisturbed(state):
        prime(state)
        prepare(state, longest)
        with peak_memory.peak(state.plan.choice.device, lasting(state)) as peak:
            state.optimise([longest] * state.ranks, "rehearsal")
            held = memory_in_use(state.plan.choice.device)
            evaluate_longest(state)
        check_company(state)
        if state.session.writes:
            check_disk(state)
            save(state)
    held = max(held, memory_in_use(state.plan.choice.device))
    reset_peak(state.plan.choice.device)
    state.session.emit(Progress(what="rehearsal", done=1, total=1))
    tokens = max(state.batches.lengths[row] for row in longest)
    text = (
        f"rehearsal: the longest batch ({len(longest)} rows of up to {tokens} tokens), its update, an evaluation batch"
        f" and a save took {time.monotonic() - began:.1f} s; memory held: {held / GIB:.2f} GiB"
    )
    state.session.say(text)
    lengths = sorted((int(e["length"]) for e in state.held_out.examples), reverse=True)[: state.settings.batch_size]
    return Rehearsed(tuple(longest), peak.bytes, lengths[0] * len(lengths) > tokens * len(longest))


def prime(state: TrainingState) -> None:
    """Let the optimiser make its state, in a step with gradients of zero: the run has it from its second step on."""
    import torch

    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def prepare(state: TrainingState, rows: Sequence[int]) -> None:
    """Features that are computed once are not part of a step."""
    examples = [state.data.examples[row] for row in rows]
    if FEATURES in examples[0]:
        examples[0][FEATURES].kept.need([e[FEATURES].row for e in examples])


def lasting(state: TrainingState) -> list[Tensor]:
    """What is there before the step and after it: the model with all that it holds, and the optimiser's state."""
    kept = (value for values in state.optimizer.state.values() for value in values.values())
    model = state.parameters.values() if state.plan.base_is_mapped else held_by(state.adapted.model)
    return [*model, *(value for value in kept if hasattr(value, "untyped_storage"))]


def evaluate_longest(state: TrainingState) -> None:
    """One evaluation batch, the one with the longest row; features are not computed for its sake."""
    rows = by_length([e["length"] for e in state.held_out.examples], state.settings.batch_size)[0]
    examples = [state.held_out.examples[row] for row in rows]
    if FEATURES in examples[0] and not examples[0][FEATURES].kept.at_hand([e[FEATURES].row for e in examples]):
        examples = [without_features(e) for e in examples]
    forward(state.predictor, examples, [list(range(len(rows)))], state.fewer_rows)


def check_company(state: TrainingState) -> None:
    """Rows that are padded have the loss that they have alone. (Where they are packed, it was asked before.)"""
    if state.base.setting.packing or (state.settings.batch_size == 1 and state.settings.batch_tokens is None):
        return
    try:
        found = packing.compare(state.predictor, state.data.examples)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return  # such rows will be alone in the run, too
    if found is not None:
        text = f"{found}: what is in a batch changes what is learnt of a row; use train.batch_size=1, with"
        state.session.warn(f"{text} train.gradient_accumulation for larger steps")


def longest_batch(batches: Batches, total_steps: int) -> list[int]:
    """The micro-batch of the whole run that takes most: by its tokens (padding counts), then by its longest row."""

    def cost(rows: Sequence[int]) -> tuple[int, int]:
        lengths = [batches.lengths[row] for row in rows]
        return (sum(lengths) if batches.packed else max(lengths) * len(lengths)), max(lengths)

    steps = islice(batches.steps(Position()), total_steps)
    return max((rows for _, micro_batches in steps for rows in micro_batches), key=cost)


@contextmanager
def undisturbed(state: TrainingState) -> Iterator[None]:
    """What is done within leaves no trace: an optimiser of its own, then parameters, buffers and draws as before."""
    import torch

    random = RandomState(state.plan.choice.device)
    parameters = {name: p.detach().to("cpu", copy=True) for name, p in state.parameters.items()}
    live = dict(state.adapted.model.named_buffers())
    changing = {*small_buffers(state.adapted.model), *state.adapted.buffers}
    buffers = [(live[name], live[name].clone()) for name in changing]
    own = state.optimizer, state.scaler, state.non_finite.in_a_row
    state.optimizer = make_optimizer(state.adapted, state.plan.adapter, state.settings)
    state.scaler = grad_scaler(state.plan.choice)
    try:
        yield
    finally:
        state.optimizer, state.scaler, state.non_finite.in_a_row = own
        with torch.no_grad():
            for name, parameter in state.parameters.items():
                parameter.copy_(parameters[name])
            for buffer, value in buffers:
                buffer.copy_(value)
        random.restore()


def check_disk(state: TrainingState) -> None:
    """Raises RunError unless the adapter and every checkpoint of this run have room beside what is there.

    Those that time alone may bring are only warned of: the run may be over before.
    """
    kept = {id(t): t for s in state.optimizer.state.values() for t in s.values() if hasattr(t, "nbytes")}
    trained = sum(p.nbytes for p in state.parameters.values())
    whole = sum(p.numel() * 4 for p in state.adapted.model.parameters()) if state.plan.adapter.trains_base else trained
    settings = state.settings
    each = trained * (2 if settings.keep_best else 1) + sum(t.nbytes for t in kept.values())
    most = settings.keep_checkpoints + 1  # the oldest goes once the newest is there
    asked = state.total_steps // settings.checkpoint_every if settings.checkpoint_every else 0
    certain = max(1, min(asked, most))  # the rehearsal writes one in any case
    possible = certain if settings.checkpoint_minutes is None else most
    free = shutil.disk_usage(state.session.folder).free

    def lacking(count: int) -> str:
        needed = f"the adapter and {count} checkpoint{'s' * (count > 1)} need {(whole + count * each) / GIB:.2f} GiB"
        lower = f"lower train.keep_checkpoints ({settings.keep_checkpoints}), " if count > 1 else ""
        return (
            f"{state.session.folder}: {needed}, and {free / GIB:.2f} GiB are free: free some, {lower}or choose another"
            " folder with --out"
        )

    if whole + certain * each > free:
        raise RunError(lacking(certain))
    if whole + possible * each > free:
        state.session.warn(lacking(possible))


def save(state: TrainingState) -> None:
    """The adapter and a checkpoint, written and removed again. Raises RunError where they cannot be written."""
    scratch: Path = state.session.folder / REHEARSAL
    try:
        state.plan.adapter.save(state.adapted.model, scratch / "adapter")
        progress = TrainingProgress(0, Position(), Best())
        checkpoint.save(scratch, progress, state.live())
    except OSError as error:
        raise RunError(
            f"{state.session.folder} cannot be written to: {error.strerror or error}: choose another --out"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def reset_peak(device: str) -> None:
    """Count the peak anew: what the rehearsal took is not the run's."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
