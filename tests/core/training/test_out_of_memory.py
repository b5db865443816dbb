"""Memory that runs out in the middle of training: the same steps in smaller passes, and never half of one."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_loop
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_loop import build, distance, equal, weights

from pefttool.api import events
from pefttool.api.errors import RunError
from pefttool.inference import out_of_memory
from pefttool.inference.evaluate import evaluate
from pefttool.setup import random_state
from pefttool.training import optimisation

#: Made anew for every raise: an error that was raised holds the frames it came through.
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 123 bytes."),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    MemoryError,
)
STEPS = 6
PHASES = ("forward", "backward", "optimizer")
#: At most two failures halve (four rows a batch), and one a step comes in its update.
failures = st.lists(
    st.tuples(st.integers(1, STEPS), st.sampled_from(PHASES), st.integers(0, 3), st.sampled_from(ERRORS)),
    max_size=4,
    unique_by=lambda f: (f[0], f[1]),
).filter(lambda chosen: sum(phase != "optimizer" for _, phase, _, _ in chosen) <= 2)


def inject(loop: Any, planned: Any) -> Counter[tuple[int, str]]:
    """Raise each planned error once, in its step and phase, at the call of its number. Counts what was raised."""
    waiting = {(step, phase): (call, error) for step, phase, call, error in planned}
    raised: Counter[tuple[int, str]] = Counter()
    calls: Counter[tuple[int, str]] = Counter()

    def reach(phase: str) -> None:
        key = (loop.emit.step, phase)
        calls[key] += 1
        if key in waiting and (calls[key] > waiting[key][0] or phase == "optimizer"):
            _, error = waiting.pop(key)
            raised[key] += 1
            raise error()

    def forward(module: Any, inputs: Any, output: Any) -> None:
        if output.requires_grad:
            reach("forward")
            output.register_hook(lambda gradient: reach("backward"))

    for name, module in loop.state.adapted.model.named_modules():
        if name.endswith("down_proj"):
            module.register_forward_hook(forward)
    loop.state.optimizer.register_step_pre_hook(lambda *_: reach("optimizer"))
    return raised


def halving_at(loop: Any, steps: Counter[int]) -> None:
    """A loop whose micro-batches are smaller from these steps on, without any failure."""
    for step, times in steps.items():

        def smaller(times: int = times) -> None:
            loop.state.halvings += times

        if step == 1:
            smaller()
        else:
            loop.emit.after[step - 1] = smaller


@pytest.fixture(scope="module", autouse=True)
def collecting_is_quick() -> Iterator[None]:
    """Every failure collects garbage: not among all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planned=failures)
def test_failures_at_any_point_change_nothing(tmp_path: Path, packed: bool, planned: Any) -> None:
    """To the bit a run that was split so from the start; within rounding one that never was; the same rows."""
    runs = [build(tmp_path, packed, epochs=1, evaluate_every=STEPS) for _ in range(2)]
    raised = inject(runs[0], planned)
    smaller: Counter[int] = Counter()
    runs[0].run()
    for (step, phase), times in raised.items():
        smaller[step] += times * (phase != "optimizer")
    halving_at(runs[1], smaller)
    runs[1].run()
    assert sum(raised.values()) == sum("memory ran out" in text for text in runs[0].emit.notices)
    assert sum(raised.values()) >= sum(call == 0 for _, _, call, _ in planned)
    assert equal(weights(runs[0]), weights(runs[1]))
    losses = [[(e.step, e.loss, e.rows, e.tokens) for e in loop.emit.of(events.StepDone)] for loop in runs]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    plain, disturbed = (build(tmp_path, packed, epochs=1, optimizer="sgd") for _ in range(2))
    inject(disturbed, planned)
    plain.run()
    disturbed.run()
    assert distance(weights(disturbed), weights(plain)) < 1e-6
    order = [[row for batch in loop.plan.task.collated for row in batch] for loop in (plain, disturbed)]
    assert list(dict.fromkeys(order[0])) == list(dict.fromkeys(order[1]))  # rows in the order of their first try


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_a_step_done_again_draws_what_it_drew(tmp_path: Path, scaled: bool) -> None:
    """With dropout: an update that failed before it was applied leaves the run as it was, to the bit.

    Scaled gradients (float16): the scaler has already seen those of the failed attempt.
    """
    plain, disturbed = (build(tmp_path, True, dropout=0.3, scaled=scaled) for _ in range(2))
    raised = inject(disturbed, [(2, "optimizer", 0, ERRORS[0]), (5, "optimizer", 0, ERRORS[4])])
    for loop in (plain, disturbed):
        torch.manual_seed(4)
        loop.run()
    assert sum(raised.values()) == 2 and disturbed.state.halvings == 0
    assert equal(weights(plain), weights(disturbed))


def test_the_failed_attempt_is_freed_before_the_next(tmp_path: Path) -> None:
    loop = build(tmp_path, True)
    held: list[Any] = []
    alive: list[bool] = []

    def forward(module: Any, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        alive.append(any(reference() is not None for reference in held))
        if not held:
            held.append(weakref.ref(output))
            raise ERRORS[0]()

    loop.state.adapted.model.get_submodule("base_model.model.model.layers.1.mlp").register_forward_hook(forward)
    loop.run()
    assert held and not any(alive) and len(alive) > 6


def test_an_error_that_is_something_else_is_not_caught(tmp_path: Path) -> None:
    loop = build(tmp_path, True)
    inject(loop, [(2, "backward", 0, lambda: RuntimeError("shape mismatch"))])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        loop.run()


def test_one_row_that_does_not_fit(tmp_path: Path) -> None:
    loop = build(tmp_path, True)

    def forward(module: Any, inputs: Any) -> None:
        if torch.is_grad_enabled():
            raise ERRORS[1]()

    loop.state.adapted.model.register_forward_pre_hook(forward)
    with pytest.raises(RunError, match=r"step 1: memory ran out with one row of \d+ tokens: lower train.sequence_leng"):
        loop.run()
    assert loop.state.halvings in (2, 3) and loop.emit.of(events.StepDone) == []


def test_half_an_update_is_never_gone_on_with(tmp_path: Path) -> None:
    loop = build(tmp_path, True)

    def half(*_: Any) -> None:
        if loop.emit.step == 3:
            with torch.no_grad():
                next(iter(loop.state.parameters.values())).add_(1)
            raise ERRORS[0]()

    loop.state.optimizer.register_step_pre_hook(half)
    with pytest.raises(RunError, match="step 3: memory ran out in the update itself: use a"):
        loop.run()


def test_an_update_that_never_fits(tmp_path: Path) -> None:
    loop = build(tmp_path, True)

    def full(*_: Any) -> None:
        raise ERRORS[0]()

    loop.state.optimizer.register_step_pre_hook(full)
    with pytest.raises(RunError, match="step 1: memory ran out in the update itself"):
        loop.run()
    assert sum("done again" in text for text in loop.emit.notices) == 1


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_only_what_was_changed_counts_as_applied(tmp_path: Path, name: str) -> None:
    """The state that an optimiser makes before its first update is no update."""
    loop = build(tmp_path, True, optimizer=name)
    for parameter in loop.state.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    attempt = optimisation.Attempt(loop.state.optimizer)
    assert not attempt.applied
    attempt.enter("optimizer")
    assert not attempt.applied
    group = loop.state.optimizer.param_groups[0]
    if name == "adamw":
        loop.state.optimizer._init_group(group, [], [], [], [], [], [])  # type: ignore[attr-defined]
    else:
        loop.state.optimizer.init_state(group, group["params"][0], 0, 0)  # type: ignore[attr-defined]
    assert not attempt.applied
    loop.state.optimizer.step()
    assert attempt.applied


def test_several_processes_stop_with_one_line(tmp_path: Path) -> None:
    loop = build(tmp_path, True)
    loop.state.ranks = 2
    inject(loop, [(1, "forward", 0, ERRORS[0])])
    two = SimpleNamespace(**{**vars(tiny_loop.ALONE), "num_processes": 2, "prepare_model": lambda model: model})
    loop.state.session = replace(loop.session, accelerator=two)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"step 1: memory ran out in process 0 of 2: lower train.batch_size \(4\)"):
        loop.run()
    assert loop.state.fewer_rows is None


def held_out(loop: Any, smaller: Any, batches: Any = None) -> Any:
    return evaluate(loop.state.predictor, loop.state.held_out, batches or [list(range(5)), [5, 6]], smaller)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_evaluation_goes_on_with_smaller_batches(tmp_path: Path, packed: bool) -> None:
    loop = build(tmp_path, packed)
    expected, _ = held_out(loop, None)
    calls: list[int] = []

    def forward(module: Any, inputs: Any) -> None:
        calls.append(1)
        if len(calls) in (1, 3):
            raise ERRORS[len(calls)]()

    hook = loop.state.adapted.model.register_forward_pre_hook(forward)
    told: list[str] = []
    found, _ = held_out(loop, told.append)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6) and len(told) == 2
    with pytest.raises(RuntimeError, match="allocate"):  # unless it may not
        calls.clear()
        held_out(loop, None)
    hook.remove()
    loop.state.adapted.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(RunError, match=r"memory ran out in evaluation with one row of \d+ tokens: lower"):
        held_out(loop, told.append, [[0, 1, 2]])


def test_what_is_a_lack_of_memory() -> None:
    assert all(out_of_memory.out_of_memory(error()) for error in ERRORS)
    assert out_of_memory.out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not out_of_memory.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory.out_of_memory(ValueError("out of memory"))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 5))
def test_splitting_keeps_rows_and_order(lengths: list[int], times: int) -> None:
    rows = list(range(len(lengths)))[::-1]
    parts = out_of_memory.split([rows], lengths, times)
    assert [row for part in parts for row in part] == rows and all(parts)
    assert len(parts) <= 2**times
    if times and len(rows) > 1:
        assert len(parts) > 1
        first, second = (sum(lengths[row] for row in half) for half in out_of_memory.halves(rows, lengths))
        assert abs(first - second) <= 2 * max(lengths)


def test_random_state_is_gone_back_to() -> None:
    torch.manual_seed(1)
    state = random_state.RandomState("cpu")
    first = torch.rand(3)
    state.restore()
    assert torch.rand(3).equal(first)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space that can be lifted again")
def test_the_allocator_really_fails(tmp_path: Path) -> None:
    """PyTorch's own error, under a limit of address space; half as many rows fit."""
    import resource

    loop = build(tmp_path, False, batch_size=8, max_steps=3)

    def greedy(module: Any, inputs: Any, options: Any) -> None:
        if torch.is_grad_enabled():
            torch.empty(options["input_ids"].shape[0] << 30, dtype=torch.uint8)  # 1 GiB a row, and no page touched

    loop.state.adapted.model.register_forward_pre_hook(greedy, with_kwargs=True)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (7 << 30), before[1]))
        loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    (notice,) = [text for text in loop.emit.notices if "memory ran out" in text]
    assert notice.startswith("step 1: memory ran out (forward)") and loop.state.halvings == 1
    assert [e.rows for e in loop.emit.of(events.StepDone)] == [8, 8, 8]
