"""Optimiser, schedule and one optimiser step, for training and for the contract suite alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pefttool.api.adapter import Adapter
from pefttool.api.errors import RunError
from pefttool.inference.predictor import Predictor
from pefttool.setup.precision import autocast
from pefttool.toolkit.quiet import quiet_imports

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pefttool.config.settings import TrainSettings
    from pefttool.setup.attach import Adapted

T = TypeVar("T")

#: Optimisers of bitsandbytes by our names. Smaller parameters (below 4,096 elements) keep a 32-bit state there.
BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
#: Elements from which on bitsandbytes pages a state.
PAGED_FROM = 100_000


def make_optimizer(adapted: Adapted, adapter: Adapter, settings: TrainSettings) -> torch.optim.Optimizer:
    """The recipe's optimiser; decay on matrices only, heads at their own rate, and the adapter's groups at theirs."""
    import torch

    groups = adapter.param_groups(adapted.model, adapted.trainable, settings.learning_rate)
    named = adapted.parameters()
    if adapted.head:
        head_rate = settings.head_learning_rate or settings.learning_rate
        groups.append({"params": [named[n] for n in adapted.head], "lr": head_rate})
    split = []
    for group in groups:
        for decays in (True, False):
            chosen = [p for p in group["params"] if (p.ndim >= 2) == decays]
            if chosen:
                decay = group.get("weight_decay", settings.weight_decay) if decays else 0.0
                split.append({**group, "params": chosen, "weight_decay": decay})
    if settings.optimizer in BITSANDBYTES:
        return _from_bitsandbytes(settings.optimizer, split)
    # Fused: twice as fast as PyTorch's default on a CPU, and nothing is allocated in the middle of an update.
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(split, fused=True)
    return torch.optim.SGD(split, fused=True)


def _from_bitsandbytes(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with quiet_imports():
        import bitsandbytes
    operator: Any = torch.ops.bitsandbytes.optimizer_update_8bit_blockwise
    operator.workspace_bytes = _eight_bit_workspace
    with unset_fake_temporarily():  # a simulation, too, has real tables of what 8 bits stand for
        optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, BITSANDBYTES[name])(groups)
    return optimizer


def _eight_bit_workspace(kind: str, name: str, gradient: Tensor, *others: Any) -> int:
    """What a simulation does not see: on a CPU both states, the gradient and two more are float32 for the update."""
    return 5 * 4 * gradient.numel() if kind == "cpu" else 0


def is_paged(optimizer: torch.optim.Optimizer, state: Tensor) -> bool:
    """Whether this part of the optimiser's state is moved to host memory when the device is full."""
    return bool(getattr(optimizer, "is_paged", False)) and state.numel() >= PAGED_FROM


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, total_steps: int) -> Any:
    """The rate over the steps, warmed up over `warmup` (a share of all steps, or a number of them).

    What `transformers.get_scheduler` gives (a test compares): importing that takes longer than importing torch.
    """
    from torch.optim.lr_scheduler import LambdaLR

    warmup = round(settings.warmup * total_steps) if settings.warmup < 1 else round(settings.warmup)
    warmup = min(warmup, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if settings.scheduler == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + math.cos(math.pi * done)) if settings.scheduler == "cosine" else 1.0

    return LambdaLR(optimizer, factor)


def check_rates(schedule: Any, settings: TrainSettings, total_steps: int) -> None:
    """Raises RunError where every step of the run has a learning rate of 0."""
    rates = list(zip(schedule.base_lrs, schedule.lr_lambdas, strict=True))
    if any(rate and factor(step) for step in range(total_steps) for rate, factor in rates):
        return
    if not any(rate for rate, _ in rates):
        raise RunError(
            "the adapter gives all its parameters a learning rate of 0: nothing would train; mend its param_groups()"
        )
    raise RunError(
        f"the learning rate is 0 in all {total_steps} steps: train.warmup={settings.warmup:g} leaves none after the"
        " first, which begins at 0; lower it, or train for more steps"
    )


@dataclass(frozen=True)
class StepResult:
    """`loss` is the step's objective: the sum over the weight of all micro-batches, on this rank.

    weight     units of the loss that this rank's micro-batches were of
    skipped    nothing was updated, for the loss or the gradient is not finite
    culprit    the first of this rank's micro-batches whose loss is not finite
    """

    loss: float
    grad_norm: float
    weight: float = 0.0
    skipped: bool = False
    culprit: int | None = None


def advance(schedule: Any, after: StepResult) -> None:
    """The next step's rates. PyTorch warns where there was no update yet, which a step left out is a reason for."""
    with warnings.catch_warnings() if after.skipped else nullcontext():
        if after.skipped:
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()


def _marking_the_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """(item, whether it is the last), one ahead: micro-batches made all at once would lie on the device together."""
    waiting: list[T] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True


@dataclass(frozen=True)
class Update:
    """What applies gradients: the optimiser, the scaler of half precision, and the parameters whose norm is clipped."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    parameters: Sequence[nn.Parameter]
    max_grad_norm: float


@dataclass(frozen=True)
class Ranks:
    """How many processes take each step together; within `no_sync()` they do not yet share gradients."""

    count: int = 1
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext


ALONE = Ranks()


def optimizer_step(
    predictor: Predictor,
    update: Update,
    micro_batches: Iterable[tuple[Mapping[str, Tensor], bool]],
    weight: float,
    ranks: Ranks = ALONE,
    entering: Callable[[str], object] = lambda phase: None,
) -> StepResult:
    """Accumulate gradients of sum/`weight` over the micro-batches, clip, step.

    `weight` counts the units of the whole step, over all micro-batches and ranks, so accumulation and the number of
    ranks never change the objective. A micro-batch marked False is a filler: it keeps the ranks in step and adds
    nothing. `entering` is told when "forward", "backward" and "optimizer" begin.

    Where a loss or a gradient is not finite, parameters and optimiser stay as they are. Raises RunError where nothing
    of the step is trained, or its loss has no gradient.
    """
    import torch

    scaler = update.scaler
    total = units = 0.0
    culprit, counted = None, False
    for i, ((batch, counts), last) in enumerate(_marking_the_last(micro_batches)):
        with nullcontext() if last else ranks.no_sync():
            entering("forward")
            with autocast(predictor.choice):
                loss = predictor.loss(batch)
            # DistributedDataParallel averages gradients over ranks: undo its division.
            scaled = loss.sum * (ranks.count / weight if counts else 0.0)
            entering("backward")
            if scaled.requires_grad:
                scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
            elif float(loss.weight):
                raise RunError(
                    f"the loss of task {predictor.task.name!r} does not depend on anything that trains: the adapter, or"
                    " what train.gradient_checkpointing does, cuts its gradient off; use another of them"
                )
        if counts:
            counted = True
            summed = float(loss.sum.detach())
            total, units = total + summed / weight, units + float(loss.weight)
            culprit = i if culprit is None and not math.isfinite(summed) else culprit
    if counted and not units:
        raise RunError(
            f"no token or label of this step is trained, and {weight:g} were announced:"
            f" task {predictor.task.name!r} masks them when it makes batches"
        )
    entering("optimizer")
    scaler.unscale_(update.optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(update.parameters, update.max_grad_norm))
    # Ranks share the gradient, and not the loss: they have to decide alike.
    finite = math.isfinite(norm) and (culprit is None or ranks.count > 1)
    if finite or (scaler.is_enabled() and culprit is None):  # a scaler leaves out by itself what it scaled too high
        scaler.step(update.optimizer)
    scaler.update()
    update.optimizer.zero_grad(set_to_none=True)
    return StepResult(total, norm, units, skipped=not finite, culprit=culprit)


class Attempt:
    """One try at an optimiser step: how far it came, and whether its update has begun to be applied."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.phase = "forward"
        self.marks: dict[tuple[int, str], int] = {}

    def enter(self, phase: str) -> None:
        """What `optimizer_step` tells."""
        self.phase = phase
        if phase == "optimizer":
            self.marks = self._marks()

    @property
    def applied(self) -> bool:
        """A parameter or a part of the optimiser's state was changed: this try cannot be made undone.

        PyTorch does not see what its fused updates change, and need not: they allocate nothing once they have begun.
        """
        return self.phase == "optimizer" and any(self.marks.get(key, 0) != now for key, now in self._marks().items())

    def _marks(self) -> dict[tuple[int, str], int]:
        """How often PyTorch has seen each tensor changed in place; the number itself of what counts steps."""
        found = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                held: dict[str, Any] = {"": parameter, **self.optimizer.state.get(parameter, {})}
                found.update({(id(parameter), name): _mark(value) for name, value in held.items()})
        return found


def _mark(value: Any) -> int:
    version: int | None = getattr(value, "_version", None)
    return version if version is not None else int(value) if isinstance(value, int | float) else 0
