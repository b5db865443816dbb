"""Frozen blocks that are not there until they are needed: fetched one ahead, dropped after their use.

Nobody pushes a block in: whoever multiplies by one of its weights asks for it, in the forward pass, in what
checkpointing recomputes and in the backward pass alike, and keeps nothing. So there is no hook that a recomputation
could pass by, and no weight in the graph that would keep a block alive.

    Slots     which blocks are at hand: the one in use, and the one that comes next, in the direction of the walk
    a lane    how a block gets there: `Views` of a mapped file, where the CPU computes; `Copies` in a few buffers that
              are used over and over; `CudaCopies`, the same behind the back of what the card computes
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pefttool.files.sectioned_file import PackedFile, TensorSection

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pefttool.api.quantizer import Quantizer


class Lane(Protocol):
    """How blocks get to where they are computed with. `begin`, then `take` as often as needed, then `drop`."""

    def begin(self, block: int) -> None:
        """Start fetching a block. Returns before it is there, where that is possible."""

    def take(self, block: int) -> Mapping[str, Tensor]:
        """A block's tensors by name, once they are there."""

    def drop(self, block: int) -> None:
        """The block is not needed any more: what `take` gave may change from now on."""


class Slots:
    """The blocks at hand of `sections`: never more than one, and `ahead` (0 or 1) that come next.

    `fetched` counts blocks, `fetched_bytes` what they hold.
    """

    def __init__(self, sections: Sequence[TensorSection], ahead: int = 1) -> None:
        self.sections, self.ahead = tuple(sections), ahead
        self.lane: Lane | None = None
        self.fetched = self.fetched_bytes = 0
        self._current = self._previous = -1
        self._held: list[int] = []
        self._tensors: Mapping[str, Tensor] = {}

    @property
    def most(self) -> int:
        """How many blocks are held at a time."""
        return min(1 + self.ahead, len(self.sections))

    def tensors(self, block: int) -> Mapping[str, Tensor]:
        """The tensors of a block, which are valid until the next block but one is asked for."""
        if block != self._current:
            self._move(block)
        return self._tensors

    def _move(self, block: int) -> None:
        assert self.lane is not None, "the blocks have no lane"
        wanted = [block, *self._next(block)]
        self._current = -1  # should fetching fail, nothing is there
        for held in self._held:
            if held not in wanted:
                self.lane.drop(held)
        self._held = [held for held in self._held if held in wanted]
        for coming in wanted:
            if coming not in self._held:
                self.lane.begin(coming)
                self._held.append(coming)
                self.fetched += 1
                self.fetched_bytes += self.sections[coming].size
        self._tensors = self.lane.take(block)
        self._previous, self._current = block, block

    def _next(self, block: int) -> list[int]:
        """Forward from the first block, backward from the last, on in between."""
        last = len(self.sections) - 1
        if not self.ahead or last == 0:
            return []
        onwards = block == 0 or (block != last and block > self._previous)
        return [block + 1 if onwards else block - 1]


class Host(Protocol):
    """Where blocks lie in host memory."""

    def flat(self, block: int) -> Tensor:
        """The bytes of a block, uint8; there may be more behind them."""

    def release(self, block: int) -> None:
        """They are not needed for now."""


class Mapped:
    """Blocks in a mapped file. Their pages are given back after use; the system keeps them in memory it has free."""

    def __init__(self, file: PackedFile, sections: Sequence[TensorSection]) -> None:
        self._file, self.sections = file, tuple(sections)
        self._starts = [file.find(section) for section in sections]

    def flat(self, block: int) -> Tensor:
        return self._file.flat(self.sections[block], self._starts[block])

    def expect(self, block: int) -> None:
        """Let the system read ahead."""
        self._file.advise(self.sections[block], self._starts[block], mmap.MADV_WILLNEED)

    def release(self, block: int) -> None:
        self._file.advise(self.sections[block], self._starts[block], mmap.MADV_DONTNEED)


class Views:
    """Blocks as views of a mapped file, for a CPU: nothing is copied."""

    def __init__(self, host: Mapped) -> None:
        self._host = host
        self._views = [section.views(host.flat(block)) for block, section in enumerate(host.sections)]

    def begin(self, block: int) -> None:
        self._host.expect(block)

    def take(self, block: int) -> Mapping[str, Tensor]:
        return self._views[block]

    def drop(self, block: int) -> None:
        self._host.release(block)


class Copies:
    """Blocks in `count` buffers on `device`, copied there from `host`.

    A buffer that is used again has another version: whoever saved one of its tensors for a backward pass gets an
    error from PyTorch instead of another block's weights.
    """

    def __init__(self, sections: Sequence[TensorSection], host: Host, device: torch.device, count: int) -> None:
        import torch

        self._sections, self._host, self.device = sections, host, device
        size = max(section.size for section in sections)
        with torch.inference_mode(False):  # a tensor made for inference has no version
            self.buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._free = list(range(count))
        self._at: dict[int, int] = {}

    def begin(self, block: int) -> None:
        self._at[block] = self._free.pop(0)
        self._copy(block, self._at[block])

    def _copy(self, block: int, slot: int) -> None:
        filled = self._filled(block, slot)
        filled.copy_(self._host.flat(block)[: len(filled)])
        self._host.release(block)

    def _filled(self, block: int, slot: int) -> Tensor:
        return self.buffers[slot][: self._sections[block].size]

    def take(self, block: int) -> Mapping[str, Tensor]:
        return self._sections[block].views(self.buffers[self._at[block]])

    def drop(self, block: int) -> None:
        self._free.append(self._at.pop(block))


class CudaCopies(Copies):
    """The same on a CUDA device, while it computes with another block. Its order is tested; no card has run it yet.

    A thread reads a block from the file into pinned memory, and asks a stream of its own to copy it. That stream waits
    for all that was asked of the device before the block was begun, since that may still read the buffer; whoever
    takes the block waits for the copy.
    """

    def __init__(
        self, sections: Sequence[TensorSection], host: Host, device: torch.device, count: int, cuda: Any
    ) -> None:
        """`cuda` is `torch.cuda`."""
        super().__init__(sections, host, device, count)
        self._cuda, self._stream = cuda, cuda.Stream(device)
        self._pinned = [self._pin(len(buffer)) for buffer in self.buffers]
        self._copied: list[Any] = [None] * count  # by slot: when its pinned memory may be written again
        self._coming: dict[int, Future[Any]] = {}
        self._reader = ThreadPoolExecutor(1, "streaming")

    def _pin(self, size: int) -> Tensor:
        import torch

        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _copy(self, block: int, slot: int) -> None:
        from torch.autograd.graph import increment_version

        increment_version(self.buffers[slot])  # now, not when the thread comes to it
        before = self._cuda.current_stream(self.device).record_event()
        self._coming[block] = self._reader.submit(self._read, block, slot, before)

    def _read(self, block: int, slot: int, before: Any) -> Any:
        if self._copied[slot] is not None:
            self._copied[slot].synchronize()
        filled = self._filled(block, slot)
        pinned = self._pinned[slot][: len(filled)]
        pinned.copy_(self._host.flat(block)[: len(filled)])
        self._host.release(block)
        self._stream.wait_event(before)
        with self._cuda.stream(self._stream):
            filled.copy_(pinned, non_blocking=True)
        self._copied[slot] = self._stream.record_event()
        return self._copied[slot]

    def take(self, block: int) -> Mapping[str, Tensor]:
        self._cuda.current_stream(self.device).wait_event(self._coming[block].result())
        return super().take(block)

    def drop(self, block: int) -> None:
        self._coming.pop(block).result()
        super().drop(block)


def lane(host: Mapped, device: torch.device, count: int) -> Lane:
    """The lane for the device that computes, with room for `count` blocks."""
    import torch

    if device.type == "cpu":
        return Views(host)
    if device.type == "cuda":
        return CudaCopies(host.sections, host, device, count, torch.cuda)
    return Copies(host.sections, host, device, count)


def attach(model: nn.Module, layers: Sequence[str], names: Sequence[str], quantizer: Quantizer) -> Slots:
    """Let the quantizer's skeletons called `names` inside the blocks `layers` of `model` fetch what they hold."""
    inside = [[name for name in names if name.startswith(f"{layer}.")] for layer in layers]
    by_block = [{name: _stored(model.get_submodule(name)) for name in block} for block in inside if block]
    sections = [
        TensorSection.of({f"{name}.{part}": tensor for name, parts in block.items() for part, tensor in parts.items()})
        for block in by_block
    ]
    slots = Slots(sections)
    for number, block in enumerate(by_block):
        for name, parts in block.items():
            keys = {part: f"{name}.{part}" for part in parts}
            quantizer.stream(model.get_submodule(name), partial(_fetch, slots, number, keys))
    return slots


def _stored(skeleton: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in skeleton.named_parameters(recurse=False) if name != "bias"}


def _fetch(slots: Slots, block: int, keys: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = slots.tensors(block)
    return {part: tensors[key] for part, key in keys.items()}
