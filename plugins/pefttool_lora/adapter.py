"""LoRA through peft. A and B are float32 whatever the base is stored in; the base's bytes never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pefttool import Adapter, Attached, Facts, Problem, Task
from pefttool.nn import parameters
from pefttool.toolkit import attachment, peft_folder, peft_targets
from pefttool_lora.options import LoraOptions, resolve, unmatched

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

#: The rate of the adapter is an order above full fine-tuning's: B starts at zero.
GENERATIVE = {"learning_rate": 1e-3}
OTHER = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}
#: peft's class for this task type drops `token_type_ids` on the way to the model; its general class hands them on, and
#: finds the head by `modules_to_save` as well.
FORGETS = "QUESTION_ANS"


class LoraAdapter(Adapter):
    """A trained low-rank update beside every chosen linear layer (LoRA, arXiv:2106.09685)."""

    name = "lora"
    Options = LoraOptions
    merges_in_parts = True

    def defaults(self, task: Task) -> Mapping[str, Any]:
        return GENERATIVE if task.generative else OTHER

    def check(self, options: LoraOptions, facts: Facts) -> list[Problem]:
        problems = unmatched(options, facts)
        if options.use_dora and facts.streamed:
            message = "DoRA needs the norms of weights that are streamed; drop it, or memory.stream"
            problems.append(Problem("adapter.use_dora", message))
        elif options.use_dora and not problems:
            problems += _dora_refused(resolve(options, facts), facts)
        return problems

    def notices(self, options: LoraOptions, facts: Facts) -> Sequence[str]:
        experts, total = facts.weights.get(parameters.EXPERTS, 0), sum(facts.weights.values())
        if not experts:
            return ()
        are = "parameters are expert tensors, which are no linear layers: LoRA leaves them as they are"
        return (f"{parameters.show(experts, total)} {are}",)

    def attach(self, model: nn.Module, options: LoraOptions, facts: Facts) -> Attached:
        attachment.claim(model, self.name)
        peft = peft_folder.load_peft()
        targets = resolve(options, facts)
        config = peft.LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,
            lora_dropout=options.lora_dropout,
            target_modules=targets,
            fan_in_fan_out=not set(targets).isdisjoint(facts.transposed_modules),
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            init_lora_weights="gaussian" if options.init_lora_weights == "gaussian" else True,
            bias="none",
        )
        # Without a task type peft leaves the task head alone: the core trains it in place. Plain peft, which loads the
        # saved folder, needs the type.
        adapted = peft_folder.wrap(model, config)
        config.task_type = None if facts.peft_task_type == FORGETS else facts.peft_task_type
        _fuse(adapted)
        trainable = frozenset(n for n, p in adapted.named_parameters() if p.requires_grad)
        return Attached(adapted, trainable, modules=tuple(targets))

    def save(self, model: nn.Module, folder: Path) -> None:
        peft_folder.save(model, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        attachment.claim(model, self.name)
        loaded = peft_folder.load(model, folder, method="LORA")
        _fuse(loaded)
        return loaded

    def merge(self, model: nn.Module) -> nn.Module:
        from pefttool_lora.merging import merge

        merged: nn.Module = merge(model)
        attachment.release(merged)
        return merged

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = getattr(model, "disable_adapter")()  # noqa: B009
        return context


def _dora_refused(targets: list[str], facts: Facts) -> list[Problem]:
    """DoRA beside layers that plain peft would take for experts: no adapter_config.json says that."""
    rewritten = peft_targets.rewritten(facts.model_type, targets)
    if not rewritten:
        return []
    ends = ", ".join(sorted({f"`*.{name.rpartition('.')[2]}`" for name in rewritten}))
    message = (
        f"peft takes layers such as {rewritten[0]!r} of a {facts.model_type!r} model for experts, and could not load"
        f" DoRA for them: drop it, or name other target_modules than {ends}"
    )
    return [Problem("adapter.use_dora", message)]


def _fuse(model: nn.Module) -> None:
    """Let the update be added inside the products of plain and quantised layers, instead of composed beside them."""
    from pefttool_kernels import lora

    lora.fuse(model)
