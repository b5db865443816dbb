"""Which blocks are at hand, how they get there, and in which order a card would see it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from blocks import BLOCKS, SECTIONS, Host, Lane, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pefttool.files.sectioned_file import PackedFile, TensorSection, write
from pefttool.nn.block_streaming import Copies, CudaCopies, Mapped, Slots, Views


def slots(lane: Any, ahead: int = 1) -> Slots:
    made = Slots(SECTIONS, ahead)
    made.lane = lane
    return made


@given(walk=st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=30), ahead=st.integers(0, 1))
def test_whatever_is_asked_for_is_there_and_little_else(walk: list[int], ahead: int) -> None:
    lane = Lane()
    made = slots(lane, ahead)
    for block in walk:
        assert made.tensors(block)["block"] == block
    assert lane.most <= made.most == 1 + ahead


@pytest.mark.parametrize(("ahead", "fetched"), [(0, 2 * BLOCKS - 2), (1, 2 * BLOCKS - 4)])
def test_a_step_fetches_a_block_twice_but_for_those_that_are_still_there(ahead: int, fetched: int) -> None:
    made = slots(Lane(), ahead)
    step = [*range(BLOCKS), *reversed(range(BLOCKS))]
    for block in step:
        made.tensors(block)
    before, size = made.fetched, made.fetched_bytes
    for block in step:
        made.tensors(block)
    assert made.fetched - before == fetched
    assert made.fetched_bytes - size == fetched * SECTIONS[0].size


def test_the_next_block_is_begun_before_it_is_asked_for() -> None:
    lane = Lane()
    made = slots(lane)
    seen = []
    for block in (0, 1, 2, 3, 4, 3, 2, 1, 0):
        made.tensors(block)
        seen.append(sorted(lane.held))
    assert seen == [[0, 1], [1, 2], [2, 3], [3, 4], [3, 4], [2, 3], [1, 2], [0, 1], [0, 1]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> PackedFile:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    everything = {n: t for block in range(BLOCKS) for n, t in tensors(block).items()} | {"norm": torch.ones(3)}
    write(path, [TensorSection.of({"norm": torch.ones(3)}), *SECTIONS], everything.__getitem__, {})
    return PackedFile(path)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("kind", ["views", "copies"])
def test_every_tensor_of_every_block_arrives(file: PackedFile, kind: str, ahead: int) -> None:
    host = Mapped(file, SECTIONS)
    made = Slots(SECTIONS, ahead)
    made.lane = Views(host) if kind == "views" else Copies(SECTIONS, host, torch.device("cpu"), made.most)
    for block in (0, 1, 2, 3, 4, 3, 2, 1, 0, 4, 2):
        found = made.tensors(block)
        assert found.keys() == tensors(block).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors(block).items())


@pytest.mark.parametrize("kind", ["views", "copies"])
def test_what_is_written_to_a_block_goes_with_it(file: PackedFile, kind: str) -> None:
    """A base that is streamed cannot be changed for longer than a block is held; its file not at all."""
    host, made, before = Mapped(file, SECTIONS), Slots(SECTIONS, 1), file.path.read_bytes()
    made.lane = Views(host) if kind == "views" else Copies(SECTIONS, host, torch.device("cpu"), made.most)
    for tensor in made.tensors(0).values():
        tensor.zero_()
    for block in (1, 2, 3):
        made.tensors(block)
    assert all(torch.equal(made.tensors(0)[name], tensor) for name, tensor in tensors(0).items())
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("inference", [False, True])
def test_a_saved_tensor_of_a_buffer_that_was_used_again_raises(inference: bool) -> None:
    made = slots(None)
    with torch.inference_mode(inference):
        made.lane = Copies(SECTIONS, Host(), torch.device("cpu"), made.most)
    x = torch.ones(5, requires_grad=True)
    product = (x * made.tensors(0)["0.absmax"]).sum()
    with torch.inference_mode(inference):
        made.tensors(1)
        made.tensors(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# -- the order that a card would see


class Event:
    def __init__(self, card: Card) -> None:
        self.card, self.done = card, False

    def synchronize(self) -> None:
        while not self.done:
            self.card.step()


class Stream:
    def __init__(self, card: Card) -> None:
        self.card, self.queue = card, []  # type: Card, list[Any]
        card.streams.append(self)

    def wait_event(self, event: Event) -> None:
        self.queue.append(event)

    def record_event(self) -> Event:
        event = Event(self.card)
        self.queue.append(lambda: setattr(event, "done", True))
        return event


class Card:
    """As much of `torch.cuda` as is used. What its streams were asked to do is done later, in any order they allow."""

    def __init__(self, seed: int) -> None:
        self.streams: list[Stream] = []
        self.random = random.Random(seed)
        self.compute = self.current = Stream(self)

    def Stream(self, device: Any) -> Stream:
        return Stream(self)

    def current_stream(self, device: Any) -> Stream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current = stream
        yield
        self.current = self.compute

    def step(self) -> None:
        able = [s for s in self.streams if s.queue and not (isinstance(s.queue[0], Event) and not s.queue[0].done)]
        assert able, "the streams wait for each other"
        work = self.random.choice(able).queue.pop(0)
        if not isinstance(work, Event):
            work()

    def finish(self) -> None:
        while any(stream.queue for stream in self.streams):
            self.step()


class Deferred:
    """A part of a buffer that is filled by the card, and not when it is told to."""

    def __init__(self, card: Card, part: Tensor) -> None:
        self.card, self.part = card, part

    def __len__(self) -> int:
        return len(self.part)

    def copy_(self, source: Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.card.current.queue.append(lambda: self.part.copy_(source))


class OnCard(CudaCopies):
    def _pin(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def _filled(self, block: int, slot: int) -> Any:
        return Deferred(self._cuda, super()._filled(block, slot))

    def _copy(self, block: int, slot: int) -> None:
        super()._copy(block, slot)
        self._coming[block].result()  # the fake card is for one thread


@settings(max_examples=60, deadline=None)
@given(walk=st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=14), seed=st.integers(0, 2**16))
def test_a_card_computes_with_the_block_it_was_given(walk: list[int], seed: int) -> None:
    """Whatever its streams do first, if only they wait for what they were told to wait for."""
    card = Card(seed)
    made = slots(None)
    made.lane = OnCard(SECTIONS, Host(), torch.device("cpu"), made.most, card)
    read = []
    for block in walk:
        weights = made.tensors(block)[f"{block}.absmax"]
        for _ in range(3):
            card.compute.queue.append(lambda weights=weights, block=block: read.append((block, weights.clone())))
    card.finish()
    assert len(read) == 3 * len(walk)
    assert all((values == block).all() for block, values in read)


@pytest.mark.parametrize("forgotten", ["the compute stream", "the copy"])
def test_the_card_of_these_tests_would_notice(forgotten: str) -> None:
    """Without either wait some order of the same work reads the wrong block."""

    class Forgetful(OnCard):
        def take(self, block: int) -> Mapping[str, Tensor]:
            return Copies.take(self, block) if forgotten == "the copy" else super().take(block)

        def _copy(self, block: int, slot: int) -> None:
            super()._copy(block, slot)
            if forgotten == "the compute stream":
                self._stream.queue = [w for w in self._stream.queue if not isinstance(w, Event)]

    wrong = 0
    for seed in range(20):
        card = Card(seed)
        made = slots(None)
        made.lane = Forgetful(SECTIONS, Host(), torch.device("cpu"), made.most, card)
        for buffer in made.lane.buffers:
            buffer.zero_()
        read: list[tuple[int, Tensor]] = []
        for block in (0, 1, 2, 3, 4, 3, 2, 1):
            weights = made.tensors(block)[f"{block}.absmax"]
            card.compute.queue.append(
                lambda weights=weights, block=block, read=read: read.append((block, weights.clone()))
            )
        card.finish()
        wrong += not all((values == block).all() for block, values in read)
    assert wrong


def test_a_buffer_has_another_version_before_the_card_gets_to_it() -> None:
    card = Card(0)
    made = slots(None)
    made.lane = OnCard(SECTIONS, Host(), torch.device("cpu"), made.most, card)
    x = torch.ones(5, requires_grad=True)
    product = (x * made.tensors(0)["0.absmax"]).sum()
    made.tensors(1)
    made.tensors(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
