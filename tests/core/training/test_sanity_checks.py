"""What a run watches for: each thing provoked, and nothing said of runs in which it does not happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_loop import build
from torch import nn

from pefttool.api import events
from pefttool.api.errors import Refused, RunError
from pefttool.config import registry as registries
from pefttool.files import fingerprint
from pefttool.runs import checkpoint, progress, resuming
from pefttool.runs.resuming import Resume
from pefttool.setup.attach import Adapted, attach
from pefttool.testing.bench import AdapterCase, Bench
from pefttool.training.sanity_checks import UPDATES, Watch

STEPS = UPDATES + 3
#: Plain SGD moves what has small gradients by less than float32 can show, if its rate is that of AdamW.
RATES: dict[str, dict[str, float]] = {"sgd": {"learning_rate": 0.5}, "adamw": {}, "adamw_8bit": {}}


def run(folder: Path, spoil: Any = None, **settings: Any) -> tuple[Any, list[str]]:
    """(loop, warnings) of a run whose loop was given to `spoil` before it."""
    loop = build(folder, True, **{"max_steps": STEPS, "evaluate_every": STEPS, **settings})
    if spoil is not None:
        spoil(loop)
    loop.run()
    return loop, [e.text for e in loop.emit.of(events.Notice) if e.level == "warning"]


def zeros_of(loop: Any, ending: str) -> list[Any]:
    """The parameters whose names end so have gradients of zero from now on."""
    chosen = [p for name, p in loop.state.parameters.items() if name.endswith(ending)]
    for parameter in chosen:
        parameter.register_hook(torch.zeros_like)
    assert chosen
    return chosen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw_8bit"])
@pytest.mark.parametrize(("warmup", "rehearse"), [(0.0, True), (0.5, False)], ids=["rehearsed", "warmed up"])
def test_a_sound_run_is_told_nothing(tmp_path: Path, rehearse: bool, warmup: float, optimizer: str) -> None:
    """LoRA as it starts: B is zero, so that A has no gradient before B has moved, which warm-up puts off."""

    def as_it_starts(loop: Any) -> None:
        with torch.no_grad():
            for name, parameter in loop.state.parameters.items():
                if "lora_B" in name:
                    parameter.zero_()

    loop, told = run(tmp_path, as_it_starts, rehearse=rehearse, warmup=warmup, optimizer=optimizer, **RATES[optimizer])
    assert told == [] and loop.state.watch.judged and loop.state.watch.reached == set(loop.state.parameters)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_nor_a_short_one(tmp_path: Path, steps: int) -> None:
    assert run(tmp_path, max_steps=steps, warmup=0.4)[1] == []


def test_nor_one_whose_scaled_gradients_overflow_at_first(tmp_path: Path) -> None:
    """Updates that a float16 scaler leaves out are none."""

    def overflows(loop: Any) -> None:
        for parameter in loop.state.parameters.values():
            parameter.register_hook(lambda g: g * (float("inf") if loop.emit.step <= UPDATES else 1.0))

    loop, told = run(tmp_path, overflows, scaled=True, max_steps=3 * UPDATES)
    assert told == [] and loop.state.watch.updates == UPDATES and loop.state.watch.reached == set(loop.state.parameters)


def test_nor_one_that_updates_in_the_backward_pass(tmp_path: Path) -> None:
    """Its gradients are gone when the optimiser's turn comes; its parameters change."""

    def at_once(loop: Any) -> None:
        def update(parameter: Any) -> None:
            with torch.no_grad():
                parameter.sub_(parameter.grad, alpha=1e-2)
            parameter.grad = None

        for parameter in loop.state.parameters.values():
            parameter.register_post_accumulate_grad_hook(update)

    assert run(tmp_path, at_once)[1] == []


def test_parameters_that_no_gradient_reaches_are_told(tmp_path: Path) -> None:
    _, told = run(tmp_path, lambda loop: zeros_of(loop, "layers.1.mlp.up_proj.lora_A.default.weight"))
    (text,) = told
    assert text.startswith("no gradient reached 1 of the 28 parameters that train in 5 updates, such as base_model")
    assert "layers.1.mlp.up_proj.lora_A" in text


def test_where_no_gradient_reaches_anything_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"step 5: no gradient reaches any of the 28 parameters that train, such as base"
    ):
        run(tmp_path, lambda loop: zeros_of(loop, "weight"))


def test_decay_is_no_gradient(tmp_path: Path) -> None:
    """It changes what no gradient reaches."""
    _, told = run(tmp_path, lambda loop: zeros_of(loop, "up_proj.lora_B.default.weight"), weight_decay=0.1)
    assert len(told) == 1 and "no gradient reached 2 of the 28" in told[0]


def test_parameters_that_do_not_change_are_told(tmp_path: Path) -> None:
    def forget(loop: Any) -> None:
        for group in loop.state.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not list(loop.state.parameters.values())[3]]

    (text,) = run(tmp_path, forget)[1]
    assert text.startswith(
        "1 of the 28 parameters that train have not changed in the whole run, though gradients reach"
    )


def test_a_long_warm_up_is_waited_for(tmp_path: Path) -> None:
    """At its beginning rates may be too small for any change."""
    loop, told = run(tmp_path, learning_rate=1e-6, warmup=12, max_steps=20, optimizer="adamw", weight_decay=0.0)
    assert told == [] and loop.state.watch.updates == 12
    with pytest.raises(RunError, match=r"^none of the 28 parameters that train has changed in 9 updates"):
        run(tmp_path, learning_rate=1e-12, warmup=12, max_steps=10)  # it ends before the warm-up does


def test_where_nothing_changes_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 5: none of the 28 parameters that train has changed in 5 updates"):
        run(tmp_path, learning_rate=1e-30, optimizer="sgd")


def writes(loop: Any, when: Any) -> None:
    """The forward pass writes to a frozen weight."""
    norm = loop.state.adapted.model.get_submodule("base_model.model.model.norm")

    def write(module: Any, inputs: Any) -> None:
        if when(loop):
            with torch.no_grad():
                module.weight[3] += 1e-6

    norm.register_forward_pre_hook(write)


def test_a_base_that_training_changes_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"step 5: 1 of the \d+ tensors of the frozen base have changed in 5 updates, .*norm\.weight"
    ):
        run(tmp_path, lambda loop: writes(loop, lambda loop: torch.is_grad_enabled()))


def test_a_base_that_evaluation_changes_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"^1 of the \d+ tensors of the frozen base have changed after an evaluation, .*norm\.weight"
    ):
        run(tmp_path, lambda loop: writes(loop, lambda loop: not torch.is_grad_enabled()), evaluate_every=2)


def test_a_base_that_the_rehearsal_changes_does_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 5: 1 of the \d+ tensors of the frozen base"):
        run(tmp_path, lambda loop: writes(loop, lambda loop: loop.emit.step == 0), rehearse=True)


def test_what_was_learnt_beside_a_base_that_changed_late_is_kept_and_not_delivered(tmp_path: Path) -> None:
    def late(loop: Any) -> None:
        writes(loop, lambda loop: loop.emit.step == STEPS - 1 and torch.is_grad_enabled())

    with pytest.raises(RunError, match=r"have changed at the end"):
        run(tmp_path, late, max_steps=STEPS, evaluate_every=2)
    assert (tmp_path / "checkpoints" / f"step-{STEPS}" / "COMPLETE").is_file()


def test_an_alarm_outlives_its_run(tmp_path: Path) -> None:
    """A resumption would find the base as it was, and all steps done."""
    path = tmp_path / "checkpoints" / f"step-{STEPS}"
    with pytest.raises(RunError, match=r"have changed at the end"):
        run(
            tmp_path,
            lambda loop: writes(loop, lambda loop: loop.emit.step == STEPS - 1 and torch.is_grad_enabled()),
            evaluate_every=2,
        )
    alarm = progress.watched(checkpoint.read(path)).alarm
    assert alarm is not None and "have changed at the end" in alarm
    resume = Resume(tmp_path, path, alarm=alarm)
    with pytest.raises(Refused, match=r"it ended with: 1 of the \d+ tensors"):
        resuming.check(resume, {})
    assert resuming.check(replace(resume, allow_changed=True), {}) == [f"it ended with: {alarm}"]


def test_no_checkpoint_is_taken_beside_a_base_that_changed(tmp_path: Path) -> None:
    def late(loop: Any) -> None:
        writes(loop, lambda loop: loop.emit.step == UPDATES + 1 and torch.is_grad_enabled())

    with pytest.raises(RunError, match=r"have changed before a checkpoint"):
        run(tmp_path, late, max_steps=STEPS, checkpoint_every=UPDATES + 1)
    assert not (tmp_path / "checkpoints").exists()


def test_who_goes_on_during_warm_up_is_judged_after_it(tmp_path: Path) -> None:
    still = {"learning_rate": 1e-12, "warmup": 12, "max_steps": 20, "checkpoint_every": 6, "keep_checkpoints": 9}
    for resume in (None, tmp_path / "checkpoints" / "step-6"):
        with pytest.raises(RunError, match=r"step 13: none of the 28 parameters that train has changed"):
            run(tmp_path, None, **still, resume=resume)


class Statistics(nn.Module):
    """A frozen layer with statistics, and one that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("longest", torch.zeros(1), persistent=False)

    def forward(self, x: Any) -> Any:
        self.longest.add_(1)
        self.seen.add_(x.mean(0))
        return self.trained(self.frozen(x))


def updates(model: nn.Module, trains_base: bool, count: int = STEPS) -> list[str]:
    base = tuple(n for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.requires_grad)
    adapted = Adapted(model, tuple(n for n, p in model.named_parameters() if p.requires_grad), (), True, (), base)
    optimizer, told = torch.optim.SGD(adapted.parameters().values(), lr=0.1), []  # type: ignore[var-annotated]
    watch = Watch(adapted, optimizer, told.append, trains_base)
    for _ in range(count):
        model(torch.randn(4, 3)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.finished()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    return told


def test_statistics_that_no_file_of_the_adapter_holds_are_told_once() -> None:
    """But what a model makes anew whenever it is built may change, and where the base trains they go with it."""
    (text,) = updates(Statistics(), trains_base=False)
    assert "1 of the 3 tensors of the frozen base have changed in 5 updates, such as seen: no file" in text
    assert updates(Statistics(), trains_base=True) == []


def test_a_bias_may_not_matter_and_its_weight_has_to() -> None:
    class Shifted(nn.Module):
        """Softmax does not see what is added to all of its inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.key, self.idle = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Any) -> Any:
            scores = self.key(x)
            return (
                (scores - scores.detach() + torch.softmax(scores - self.key.bias, 0)) + 0 * self.idle(x) - self.key.bias
            )

    told = updates(Shifted(), trains_base=False)
    assert len(told) == 1 and "no gradient reached 2 of the 4" in told[0] and "idle.weight" in told[0]


class Experts(nn.Module):
    """Every row goes to the first expert, none to the last two."""

    def __init__(self, served: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])}) for _ in "ab"
        )
        self.served = served

    def forward(self, x: Any) -> Any:
        for layer in list(self.layers)[: self.served]:
            x = layer["experts"][0](x)  # type: ignore[index]
        return x


def test_experts_that_no_row_is_sent_to_are_no_alarm_unless_all_are() -> None:
    assert updates(Experts(2), trains_base=False) == []
    (text,) = updates(Experts(1), trains_base=False)
    assert "no gradient reached 6 of the 12" in text and "layers.1.experts.0" in text


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_scales_of_quantised_weights_are_part_of_the_base(name: str) -> None:
    registry = registries.build()
    case = AdapterCase(registry.adapters["lora"], "decoder", registry.quantizers[name])
    for before_the_first_pass in (True, False):
        bench = Bench.load(case)
        adapted = bench.attach()
        optimizer = torch.optim.SGD(adapted.parameters().values(), lr=0.1)
        watch = Watch(adapted, optimizer, case.fail, False)
        assert any(" > " in tensor for tensor in watch.frozen)
        if not before_the_first_pass:
            bench.outputs(adapted.model)
            watch.finished()
        layer: Any = bench.model.get_submodule(bench.facts.linear_modules[0])
        layer = getattr(layer, "base_layer", layer)
        state = layer.weight.quant_state if name == "nf4" else layer.state if layer.weight.SCB is None else layer.weight
        with torch.no_grad():
            (state.absmax if name == "nf4" else state.SCB)[0] += 1
        with pytest.raises(RunError, match=r"1 of the \d+ tensors of the frozen base have changed after an evaluation"):
            watch.evaluated()


def test_frozen_batch_norms_stand_still() -> None:
    """Their statistics would follow the batches, and nobody saves them."""

    class Bare(registries.build().adapters["lora"].__class__):  # type: ignore[misc]
        def attach(self, model: Any, options: Any, facts: Any) -> Any:
            from pefttool.api.values import Attached

            model.requires_grad_(False)
            model[1].requires_grad_(True)
            return Attached(model, frozenset({"1.weight", "1.bias"}))

    from pefttool.api.facts import Facts

    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    adapted = attach(model, Bare(), None, Facts(architecture=""))
    assert adapted.eval_modules == (model[0], model[2])
    assert set(adapted.base) == {n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n[0] != "1"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (40_000,), (513, 129), (70_001,)])
def test_a_checksum_notices_any_byte_and_any_two_that_change_places(dtype: Any, shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(1)
    tensor = torch.randint(0, 2 if dtype == torch.bool else 200, shape, generator=draws).to(dtype)

    def sums(value: Any) -> Any:
        return fingerprint.checksums([value])[0]

    first = sums(tensor)
    assert first == sums(tensor.clone()) == fingerprint.checksums([torch.ones(2), tensor])[1]
    flat = tensor.reshape(-1).clone()
    for place in {0, flat.numel() // 2, flat.numel() - 1} if flat.numel() else ():
        changed = flat.clone()
        changed[place] = ~changed[place] if dtype == torch.bool else changed[place] + 1
        assert sums(changed.reshape(shape)) != first
    if flat.numel() > 600:
        for i, j in ((0, 1), (0, 512), (3, flat.numel() - 1), (0, 4096)):
            moved = flat.clone()
            moved[i], moved[j] = flat[j], flat[i]
            if not moved.equal(flat):
                assert sums(moved.reshape(shape)) != first, (i, j)


def test_a_checksum_sees_through_strides_and_odd_beginnings() -> None:
    whole = torch.arange(200_003, dtype=torch.uint8)
    assert fingerprint.checksums([whole[3:]]) == fingerprint.checksums([whole[3:].clone()])
    square = torch.arange(300 * 300).reshape(300, 300).float()
    assert fingerprint.checksums([square.T]) == fingerprint.checksums([square.T.contiguous()])
    assert fingerprint.checksums([square.T]) != fingerprint.checksums([square])
