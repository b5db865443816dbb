"""One training step of the real model without its weights: how much memory the step would hold, and for what.

The model is built on the meta device from its config, quantised linears are stand-ins of the same size, the adapter is
attached as it would be, and then every tensor becomes a fake one: its shape, dtype and lifetime are real.
The step is the trainer's own, the second one: the optimiser has its state by then.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import UsageError
from pefttool.inference import frozen
from pefttool.inference.predictor import Predictor
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantized import put_skeletons, stored_by
from pefttool.nn import block_streaming, placement
from pefttool.nn.tensors import replace_tensors
from pefttool.setup import attach, techniques
from pefttool.setup.plan import Plan
from pefttool.setup.precision import autocast, compute_in_float32, torch_dtype
from pefttool.training.optimisation import Update, is_paged, make_optimizer, optimizer_step

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.api.values import Setting
    from pefttool.forecast.recorder import Estimate, Recorder
    from pefttool.nn.block_streaming import Slots
    from pefttool.setup.attach import Adapted


def filler(plan: Plan, setting: Setting, rows: int, tokens: int) -> list[Mapping[str, Any]]:
    """`rows` encoded rows of `tokens` tokens. UsageError for a task that has none to offer."""
    try:
        return [plan.task.filler(tokens, setting)] * rows
    except NotImplementedError:
        raise UsageError(f"task {plan.task.name!r} cannot be planned: it offers no row to simulate with") from None


def peak(plan: Plan, setting: Setting, rows: int, tokens: int) -> Estimate:
    """`peak_of` a micro-batch of `rows` rows of `tokens` tokens. UsageError for a task that has none to offer."""
    return peak_of(plan, setting, filler(plan, setting, rows, tokens))


def peak_of(plan: Plan, setting: Setting, examples: Sequence[Mapping[str, Any]], settled: bool = False) -> Estimate:
    """The most that one optimiser step over a micro-batch of these encoded rows holds at a time, and an evaluation.

    Unless it is `settled` by `setting` whether rows are packed, they are where recipe and model allow it.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pefttool.forecast.recorder import HOST, Recorder

    with torch.random.fork_rng(devices=[]), _quiet():
        adapted, setting, processor, slots = _abstract(plan, setting, settled)
        batch = plan.task.collate(examples, processor, setting)
        vocabulary = getattr(getattr(adapted.model, "config", None), "vocab_size", None)
        recorder = Recorder(vocabulary)
        choice = replace(plan.choice, device="cpu", grad_scaler=False)

        def becoming_gradient(parameter: nn.Parameter) -> None:
            assert parameter.grad is not None
            recorder.own([parameter.grad], "gradients")

        def lies_on_host(tensor: Tensor) -> None:
            recorder.own([tensor], HOST)

        with placement.pretending(plan.choice.device, lies_on_host), FakeTensorMode(allow_non_fake_inputs=True):
            _make_fake(adapted.model)
            model = adapted.model.train()
            if slots is None:  # without buffers a streamed model cannot be called yet
                with Recorder(vocabulary), autocast(choice):
                    frozen.stand_still(plan, adapted, lambda: plan.task.loss(model, batch, setting))
            optimizer = make_optimizer(adapted, plan.adapter, plan.recipe.train)
            with recorder:
                _own(recorder, adapted, batch)
                if slots is not None:
                    _stream(recorder, slots, adapted.model, plan.base_is_mapped)
                _empty_step(recorder, adapted, optimizer)
                for parameter in adapted.parameters().values():
                    parameter.register_post_accumulate_grad_hook(becoming_gradient)  # type: ignore[no-untyped-call]
                scaler = torch.amp.GradScaler("cpu", enabled=False)
                optimizer_step(
                    Predictor(model, plan.task, processor, setting, choice),
                    Update(optimizer, scaler, list(adapted.parameters().values()), plan.recipe.train.max_grad_norm),
                    [(batch, True)],
                    float(sum(example["weight"] for example in examples)),
                    entering=recorder.enter,
                )
                recorder.enter("evaluation")
                with torch.no_grad(), autocast(choice):
                    plan.task.loss(model.eval(), batch, setting)
    return recorder.estimate()


def _abstract(plan: Plan, setting: Setting, settled: bool) -> tuple[Adapted, Setting, Any, Slots | None]:
    """(adapted, setting, processor, slots of streamed blocks): on the meta device, as the run would make it."""
    import torch

    arguments, for_rows = {"dtype": torch_dtype(plan.choice.dtype)}, plan.recipe.data.train is not None
    source = LocalPretrained(plan.model.path, arguments, True, plan.trusted, for_rows)
    loaded = plan.task.load(source, setting)
    model = loaded.model
    known, slots = replace(plan.facts, labels=setting.labels), None
    if plan.tables_on_host:
        from pefttool.nn import embedding_offload

        embedding_offload.install(model)
    if plan.quantization is not None:
        names = stored_by(plan.quantization.quantizer, model, known.linear_modules)
        put_skeletons(model, plan.quantization, names)
        if plan.recipe.memory.stream:
            slots = block_streaming.attach(model, known.layers, names, plan.quantization.quantizer)
    with torch.device("meta"):
        for name in known.head_modules:
            compute_in_float32(model.get_submodule(name).to(dtype=torch.float32))
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        adapted = attach.attach(model, plan.adapter, plan.recipe.adapter_options, known)
    techniques.apply(plan, adapted, simulated=True)
    packs = setting.packing if settled else plan.may_pack
    if packs:
        from pefttool.nn import attention

        packs = attention.install(adapted.model) is None
    return adapted, replace(setting, packing=packs), loaded.processor, slots


def _make_fake(model: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor on the CPU."""
    import torch

    replace_tensors(model, lambda name, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))


def _own(recorder: Recorder, adapted: Adapted, batch: Mapping[str, Any]) -> None:
    import torch

    from pefttool.forecast.recorder import HOST
    from pefttool.nn import embedding_offload

    trained = {id(p) for p in adapted.parameters().values()}
    everything = [*adapted.model.parameters(), *adapted.model.buffers()]
    recorder.enter("loading")
    recorder.own((t for t in everything if id(t) not in trained), "weights")
    recorder.own(embedding_offload.parameters(adapted.model), HOST)
    recorder.own(adapted.parameters().values(), "adapter")
    recorder.own((t for t in batch.values() if isinstance(t, torch.Tensor)), "batch")


def _stream(recorder: Recorder, slots: Slots, model: nn.Module, mapped: bool) -> None:
    """Blocks in host memory, and buffers for those at hand, unless all that is frozen is `mapped`."""
    import torch

    from pefttool.forecast.recorder import HOST

    host = AnyBlock(torch.empty(max(section.size for section in slots.sections), dtype=torch.uint8))
    lane = block_streaming.Copies(slots.sections, host, torch.device("cpu"), slots.most)
    slots.lane = lane
    recorder.own([host.content], HOST)
    recorder.own(lane.buffers, HOST if mapped else "weights")
    if mapped:
        recorder.own((p for p in model.parameters() if not p.requires_grad), HOST)
        recorder.own(model.buffers(), HOST)


class AnyBlock:
    """Host memory in which all blocks are one."""

    def __init__(self, content: Tensor) -> None:
        self.content = content

    def flat(self, block: int) -> Tensor:
        return self.content

    def release(self, block: int) -> None:
        pass


def _empty_step(recorder: Recorder, adapted: Adapted, optimizer: Any) -> None:
    """The optimiser makes its state, in a step with empty gradients."""
    import torch

    from pefttool.forecast.recorder import HOST

    for parameter in adapted.parameters().values():
        parameter.grad = torch.empty_like(parameter)
        recorder.own([parameter.grad], "gradients")
    optimizer.step()
    held = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    recorder.own((v for v in held if not is_paged(optimizer, v)), "optimizer")
    recorder.own((v for v in held if is_paged(optimizer, v)), HOST)
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
