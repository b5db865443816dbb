"""Prefix tuning through peft: trained keys and values before every layer's own, float32, on a frozen base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pefttool import Adapter, Attached, Facts, NotMergeable, Problem, Task, UsageError, claims, peft_folder
from pefttool_prefix.options import PrefixOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

#: Measured on SmolLM2-135M, 30 steps of chat rows: held-out loss 2.66 -> 2.05 (3e-3), 1.74 (1e-2), 1.48 (3e-2).
GENERATIVE = {"learning_rate": 3e-2}
#: peft's usual rates leave a classifier at chance: the prefix needs a high one, the head a lower one.
OTHER = {"learning_rate": 3e-2, "head_learning_rate": 5e-3}
TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS")


class PrefixAdapter(Adapter):
    """Trained keys and values before every layer's own (prefix tuning, arXiv:2101.00190)."""

    name = "prefix"
    packs = False
    Options = PrefixOptions

    def defaults(self, task: Task) -> Mapping[str, Any]:
        return GENERATIVE if task.generative else OTHER

    def check(self, options: PrefixOptions, facts: Facts) -> list[Problem]:
        problems = []
        if not facts.key_value_cache:
            problems.append(
                f"'prefix' needs a model that takes past_key_values, and {facts.architecture} does not; use 'lora'"
            )
        if facts.peft_task_type not in TASK_TYPES:
            problems.append(
                f"'prefix' works for peft's task types {', '.join(TASK_TYPES)}, and task {facts.task!r} is"
                f" {facts.peft_task_type or 'none of peft’s'}; use 'lora'"
            )
        found = [Problem("adapter.name", problem) for problem in problems]
        if facts.recomputes:
            message = (
                "a block that computes its activations again drops the keys and values of adapter 'prefix'; use none"
            )
            found.append(Problem("train.gradient_checkpointing", message))
        room = facts.positions - options.num_virtual_tokens
        if facts.positions and facts.sequence_length > room:
            message = f"{facts.sequence_length} and {options.num_virtual_tokens} virtual tokens are more than the"
            found.append(Problem("train.sequence_length", f"{message} model's {facts.positions} positions; use {room}"))
        return found

    def attach(self, model: nn.Module, options: PrefixOptions, facts: Facts, name: str = "default") -> Attached:
        _require_fitting(model, facts.peft_task_type)
        claims.claim(model, self.name, name)
        peft = peft_folder.load_peft()
        model.requires_grad_(False)
        generates = facts.peft_task_type == "CAUSAL_LM"
        chosen = ("activations" if generates else "random") if options.init == "auto" else options.init
        start = None
        if chosen == "activations" and not facts.abstract:
            from pefttool_prefix.initialise import from_activations

            start = from_activations(model, options.num_virtual_tokens)
        config = peft.PrefixTuningConfig(
            task_type=facts.peft_task_type, num_virtual_tokens=options.num_virtual_tokens, inference_mode=False
        )
        adapted = peft_folder.wrap(model, config, name)
        encoder = adapted.prompt_encoder[name].float()
        if start is not None:
            encoder.load_prompt_embeddings(start)
        prefix = f"prompt_encoder.{name}."
        trainable = frozenset(n for n, _ in adapted.named_parameters() if n.startswith(prefix))
        return Attached(adapted, trainable, identity_at_init=False)

    def save(self, model: nn.Module, folder: Path, name: str = "default") -> None:
        peft_folder.save(model, folder, name)

    def load(self, model: nn.Module, folder: Path, name: str = "default") -> nn.Module:
        claims.claim(model, self.name, name)
        return peft_folder.load(model, folder, name, task_wrapper=True)

    def merge(self, model: nn.Module, name: str = "default") -> nn.Module:
        raise NotMergeable(
            "adapter 'prefix' cannot be merged: it adds keys and values, which no weight of the base can hold;"
            " deliver the adapter folder"
        )

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        return _disabled(model)


@contextmanager
def _disabled(model: Any) -> Iterator[None]:
    """peft's own `disable_adapter` needs `prepare_inputs_for_generation`, which encoders do not have."""
    own = {n: vars(model).get(n) for n in ("forward", "generate")}
    try:
        for method in own:
            if hasattr(model.base_model, method):
                setattr(model, method, getattr(model.base_model, method))
        yield
    finally:
        for method, value in own.items():
            if value is not None:
                setattr(model, method, value)
            elif method in vars(model):
                delattr(model, method)


def _require_fitting(model: Any, task_type: str | None) -> None:
    """Raise UsageError where peft would compute something else than the model does, or fail in the middle."""
    import inspect

    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UsageError("train.gradient_checkpointing: adapter 'prefix' cannot recompute activations; switch it off")
    if task_type != "SEQ_CLS" or "past_key_values" in inspect.signature(model.forward).parameters:
        return
    # peft then replaces the model's own forward by: pooler output, dropout, classifier.
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if getattr(backbone, "pooler", None) is None or not hasattr(model, "dropout"):
        raise UsageError(
            f"adapter.name: 'prefix' classifies from the backbone's pooled output, and {type(model).__name__} does"
            " not; use 'lora', or task.pooling: model"
        )
