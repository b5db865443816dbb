"""What tensors hold at a time: every storage's birth and death is recorded, and the peak is found afterwards.

Afterwards, because what a storage is for is often known only later: that it became a gradient, or an optimiser's state.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pefttool.nn import placement

BLOCK = 512  # PyTorch's CUDA allocator rounds every block up to a multiple of this
LARGEST_MASK = 1 << 20  # of the masks that get values in a simulation
HOST = "host"  # a part that does not count: it does not lie on the device
#: What a peak is made of, in the order in which it is shown.
PARTS = ("weights", "adapter", "optimizer", "gradients", "activations", "logits", "workspace", "batch")


@dataclass(frozen=True)
class Estimate:
    """`peak_bytes` of tensors at a time; `parts` sum to it; `phase` is what ran then.

    `rounded_bytes` is the peak with every storage rounded up to a multiple of `BLOCK` bytes.
    """

    peak_bytes: int
    parts: Mapping[str, int]
    phase: str
    rounded_bytes: int = 0


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the storages of every tensor that operators make while it is entered, real or fake.

    Operators may state what they allocate inside, where nobody sees it: an attribute `workspace_bytes(kind, *args)` of
    the operator's packet (`torch.ops.NAMESPACE.NAME`). With fake tensors, what depends on values gets the values that
    take most: masks select everything. Operators on real tensors alone (a batch's labels) are really run.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.phase = "forward"
        #: (storage, bytes: negative at its end, phase)
        self._timeline: list[tuple[int, int, str]] = []
        self._parts: dict[int, str] = {}
        self._alive: dict[int, int] = {}
        self._made = 0
        #: Sums of two tensors in the backward pass: (first summand, sum, where the sum begins in the timeline)
        self._sums: list[tuple[int, int, int]] = []

    # ---- recording

    def enter(self, phase: str) -> None:
        """What is made from now on is made in `phase`: loading, forward, backward, optimizer, evaluation."""
        self.phase = phase

    def own(self, tensors: Iterable[Tensor], part: str) -> None:
        """Storages that are there from now on, or that have turned out to be `part`."""
        for tensor in tensors:
            self._parts[self._record(tensor)] = part

    def _record(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return self._alive[key]
        self._made += 1
        number, size = self._made, storage.nbytes()
        self._alive[key] = number
        self._timeline.append((number, size, self.phase))
        if self.vocabulary and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary:
            self._parts.setdefault(number, "logits")

        def died() -> None:
            self._alive.pop(key, None)
            self._timeline.append((number, -size, self.phase))

        weakref.finalize(storage, died)
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not any(isinstance(value, FakeTensor) for value in inputs) and (inputs or _a_mask(func, args)):
            with unset_fake_temporarily():
                output = func(*args, **kwargs)
        else:
            output = self._run(func, args, kwargs)
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._record(value)
        if func is torch.ops.aten.add.Tensor and self.phase == "backward" and len(inputs) == 2:
            self._sums.append((self._record(inputs[0]), self._record(output), len(self._timeline) - 1))
        inside = getattr(func.overloadpacket, "workspace_bytes", None)
        if inside is not None:
            with unset_fake_temporarily():
                self._inside(inside(placement.kind(inputs[0]), *args, **kwargs))
        return output

    def _inside(self, size: int) -> None:
        self._made += 1
        self._timeline += [(self._made, size, self.phase), (self._made, -size, self.phase)]

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        operators = torch.ops.aten
        if func is operators._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func is operators.nonzero.default and isinstance(args[0], FakeTensor):
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if func is operators.index.Tensor:
            return func(args[0], _whole_numbers(args[1]))
        return func(*args, **kwargs)

    # ---- reading

    def estimate(self) -> Estimate:
        """The peak, and what it was made of."""
        held = peak = at = 0
        timeline = [entry for entry in self._summed_in_place() if self._parts.get(entry[0]) != HOST]
        for i, (_, size, _) in enumerate(timeline):
            held += size
            if held > peak:
                peak, at = held, i
        sizes: dict[int, tuple[int, str]] = {}
        for number, size, phase in timeline[: at + 1]:
            if size >= 0:
                sizes[number] = (size, phase)
            else:
                del sizes[number]
        parts = dict.fromkeys(PARTS, 0)
        for number, (size, phase) in sizes.items():
            parts[self._parts.get(number, _by_phase(phase))] += size
        rounded = sum(-(-size // BLOCK) * BLOCK for size, _ in sizes.values())
        return Estimate(peak, parts, timeline[at][2] if timeline else "", rounded)

    def _summed_in_place(self) -> list[tuple[int, int, str]]:
        """The timeline as it is without a recorder. Autograd adds up the gradients of what was used twice in the first
        one's place, where nobody else holds that; but out of place while operators are being watched.
        """
        timeline: list[tuple[int, int, str] | None] = list(self._timeline)
        places: dict[int, int] = {}
        for first, total, at in self._sums:
            born = self._timeline[at]
            end = next((i for i in range(at + 1, len(timeline)) if self._timeline[i][1] >= 0), len(timeline))
            gone = [i for i in range(at + 1, end) if self._timeline[i][:2] == (first, -born[1])]
            if born[0] == total and gone:
                places[total] = places.get(first, first)
                timeline[at] = timeline[gone[0]] = None
                if total in self._parts:
                    self._parts[places[total]] = self._parts[total]
        return [(places.get(number, number), size, phase) for number, size, phase in filter(None, timeline)]


def _a_mask(func: Any, args: Any) -> bool:
    """Ones that may become part of a mask: models ask whether a mask hides anything, and do without it if not."""
    return func is torch.ops.aten.ones.default and math.prod(args[0]) <= LARGEST_MASK


def _by_phase(phase: str) -> str:
    """What the forward pass made and something still holds is there for the backward pass."""
    return "activations" if phase in ("forward", "evaluation") else "workspace"


def _whole_numbers(indices: Any) -> list[Tensor | None]:
    """Masks among the indices as the positions that they select: all of them, where the values are not known."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            found.append(index)
        elif isinstance(index, FakeTensor):
            found += [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.ndim)]
        else:
            with unset_fake_temporarily():
                found += index.nonzero().unbind(1)
    return found
