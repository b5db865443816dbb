"""What goes wrong without a word: looked for while a run makes its first updates, and once more at its end.

    gradients    one that is not zero reaches every parameter that trains
    parameters   some of them have changed when warm-up is over, and all of them in the end
    the base     not a byte of it does (blocks that are streamed come from a file that is only read, and go after use)

What makes the run worthless stops it; what may be meant is told. The looks are hooks of the optimiser, so that nobody
has to call them, and they end with the first few updates: a step costs nothing afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.files import fingerprint
from pefttool.nn.tensors import CARRIED, passing_buffers, tensors_of
from pefttool.runs.progress import Watched
from pefttool.setup.attach import Adapted, training_buffers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Updates with a learning rate above 0 (warm-up may begin at 0) after which what they did is judged.
UPDATES = 5
#: A run of fewer than these is not judged part by part. Where one factor starts at zero, the other has its first
#: gradient at the second update; with a gate that starts at zero before them, at the third.
FEWEST = 3
#: Rows are sent to one expert or another: it is enough if a gradient reaches one of them.
EXPERT = re.compile(r"\.experts\.\d+\.")

Sums = dict[str, tuple[int, int]]


class Watch:
    """The looks at one run: begin it before the first step, and ask `finished` after the last.

    `tell` is given a line for the user. Raises RunError, from the optimiser's step or from a method.
    """

    def __init__(
        self, adapted: Adapted, optimizer: torch.optim.Optimizer, tell: Callable[[str], object], trains_base: bool
    ) -> None:
        self.adapted, self.tell, self.trains_base = adapted, tell, trains_base
        self.parameters = {name: p for name, p in adapted.parameters().items() if p.numel()}
        self.frozen = _sums(self._base())
        self.before: Sums = {}
        self.reached: set[str] = set()
        self.moved: set[str] = set()
        self.updates, self.rate = 0, 0.0
        self.warmed_up = self.judged = self.gradients_judged = self.evaluated_once = self.went_on = False
        self.alarm: str | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._gradients()),
            optimizer.register_step_post_hook(lambda used, *_: self._updated(used)),
        ]

    def evaluated(self) -> None:
        """After an evaluation. The first one shows whether it leaves the base alone."""
        if not self.evaluated_once:
            self.evaluated_once = True
            self._check_base("after an evaluation")

    @property
    def state(self) -> Watched:
        """What a checkpoint holds of this."""
        done = self.gradients_judged and self.judged
        reached, moved = ((), ()) if done else (tuple(sorted(self.reached)), tuple(sorted(self.moved)))
        judged = self.gradients_judged, self.judged
        return Watched(self.updates, self.warmed_up, *judged, reached, moved, self.alarm)

    def saving(self) -> None:
        """Before a checkpoint, which knows of the base only what its files hold."""
        if self.alarm is None:
            self._check_base("before a checkpoint")

    def resumed(self, state: Watched) -> None:
        """A run goes on: what was judged is not judged again, and its last updates alone may move nothing."""
        self.updates, self.warmed_up = state.updates, state.warmed_up
        self.gradients_judged, self.judged, self.went_on = state.gradients, state.parameters, True
        self.reached, self.moved = set(state.reached), set(state.moved)

    def finished(self) -> None:
        """After the last step. What is wrong then stays the run's `alarm`."""
        for hook in self._hooks:
            hook.remove()
        try:
            if self.updates >= FEWEST:
                if not self.gradients_judged:
                    self._judge_gradients()
                if not self.went_on or not self.judged:
                    self._judge_parameters(last=not self.went_on)
            self._check_base("at the end")
        except RunError as error:
            self.alarm = str(error)
            raise

    # ---- gradients and parameters

    def _gradients(self) -> None:
        """Before an update: note which parameters a gradient reaches. One look at the device for all of them."""
        if self.gradients_judged and self.judged:
            return
        if not self.before:
            self.before = _sums(self.parameters)
        waiting = {n: p.grad for n, p in self.parameters.items() if n not in self.reached and p.grad is not None}
        self.reached.update(name for name, largest in _largest(waiting).items() if largest > 0)  # a NaN is not

    def _updated(self, optimizer: Any) -> None:
        """After an update, which counts if something could move: float16 scaling may have left it out."""
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        peak = max(float(group.get("initial_lr", 0.0)) for group in optimizer.param_groups)
        self.warmed_up = self.warmed_up or rate >= peak or rate < self.rate
        self.rate = rate
        if self.judged or not rate:
            return
        left_out = getattr(optimizer, "found_inf", None)
        if left_out is not None and float(left_out):
            return
        self.updates += 1
        if self.updates == 1:
            self._look()
        if self.updates == UPDATES:
            self._judge_gradients()
            self._check_base(f"in {self.updates} updates")
        if self.updates >= UPDATES and self.warmed_up:
            self.judged = True
            self._judge_parameters(last=False)

    def _judge_gradients(self) -> None:
        self.gradients_judged = True
        served = {EXPERT.sub(".experts.*.", name) for name in self.reached}
        unreached = [
            name
            for name in self.parameters
            if EXPERT.sub(".experts.*.", name) not in served and not _beside(name, self.reached)
        ]
        if not unreached:
            return
        # Who makes its updates in the backward pass has no gradients left to show, and changes.
        self._look()
        unreached = [n for n in unreached if n not in self.moved or self.parameters[n].grad is not None]
        total = len(self.parameters)
        if len(unreached) == total:
            raise RunError(
                f"no gradient reaches any of the {total} parameters that train, such as {unreached[0]}: the loss does"
                " not depend on them; use another adapter, or other modules of the model for it"
            )
        if unreached:
            self.tell(
                f"no gradient reached {len(unreached)} of the {total} parameters that train in {self.updates} updates,"
                f" such as {unreached[0]}: they stay as they are; leave their modules out, or use another adapter"
            )

    def _judge_parameters(self, last: bool) -> None:
        """Something has to have changed by now; and in the end everything that a gradient reached.

        Not before: what has its first gradients from a factor that starts at zero may take its time.
        """
        self._look()
        total, still = len(self.parameters), self.reached - self.moved
        still = {name for name in still if not _beside(name, self.moved)}
        if still and not self.moved:
            raise RunError(
                f"none of the {total} parameters that train has changed in {self.updates} updates, though gradients"
                " reach them: raise train.learning_rate, or use another train.optimizer"
            )
        if still and last:
            self.tell(
                f"{len(still)} of the {total} parameters that train have not changed in the whole run, though gradients"
                f" reach them, such as {min(still)}: raise train.learning_rate"
            )

    def _look(self) -> None:
        """Note which parameters are not as they were before the first update. (AdaLoRA may take them back later.)"""
        if not self.before:  # gone on with after the last one
            return
        after = _sums(self.parameters)
        self.moved.update(name for name in self.parameters if after[name] != self.before[name])

    # ---- the base

    def _base(self) -> dict[str, Tensor]:
        """What does not train of the base, with the scales of quantised weights.

        Buffers that no file holds are left out: some models change them with the length of the rows. So are those
        that are statistics of batches, and are delivered: beside what trains, and all where the base itself does.
        """
        model = self.adapted.model
        moving = set(dict(model.named_buffers())) if self.trains_base else set(training_buffers(model))
        wanted = set(self.adapted.base) - moving - passing_buffers(model)
        found, seen = {}, set()
        for name, tensor in tensors_of(model):
            owner, _, carried = name.partition(CARRIED)
            if (owner in wanted or (carried and f"{owner}.weight" in wanted)) and tensor.data_ptr() not in seen:
                found[_settled(name)] = tensor
                seen.add(tensor.data_ptr())
        return found

    def _check_base(self, when: str) -> None:
        """Compare what is there now, under the names of the start, with what was there."""
        if not self.frozen:
            return
        sums = _sums(self._base())
        changed = [n for n, s in self.frozen.items() if (sums.get(n) != s if n in sums else CARRIED not in n)]
        if not changed:
            return
        buffers = {name for name, _ in self.adapted.model.named_buffers()}
        weights = [name for name in changed if name not in buffers]
        count = f"{len(changed)} of the {len(self.frozen)} tensors of the frozen base"
        what = f"{count} have changed {when}, such as {(weights or changed)[0]}"
        if weights:
            raise RunError(
                f"{what}: what the adapter learns beside them would not fit the model's files; something writes to them"
                " in a forward pass or in an update: use another adapter or quantizer, or tell its author"
            )
        self.frozen = {name: known for name, known in self.frozen.items() if name not in changed}  # told once
        if set(changed) <= set(self.adapted.buffers):
            self.tell(
                f"{what}, though nothing trains there: they are saved beside the adapter, where pefttool finds them;"
                " without it the adapter answers otherwise"
            )
            return
        self.tell(
            f"{what}: no file of the adapter holds them, so that it will answer otherwise once it is loaded again"
        )


def _beside(name: str, others: Collection[str]) -> bool:
    """A bias whose weight is among the others: that it has no gradient may be mathematics (a key's, under softmax)."""
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in others


def _sums(named: Mapping[str, Tensor]) -> Sums:
    return dict(zip(named, fingerprint.checksums(list(named.values())), strict=True))


def _settled(name: str) -> str:
    """One name for what bitsandbytes' int8 layers hand from the weight on to their state."""
    owner, mark, carried = name.partition(CARRIED)
    return f"{owner.removesuffix('.weight')}{mark}{carried.removeprefix('state.')}" if mark else name


def _largest(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest magnitude in each gradient."""
    import torch

    if not gradients:
        return {}
    norms: Sequence[Tensor] = torch._foreach_norm(list(gradients.values()), float("inf"))
    together = torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])
    return dict(zip(gradients, together.tolist(), strict=True))
