"""Head-only training. A new task head is the core's; a language model's output layer is untied and trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttool import Adapter, Attached, Facts, ModelError, Problem, Task, UsageError
from pefttool.toolkit import attachment, peft_folder
from pefttool.toolkit.model_parts import check_last_layers, last_layer_parameters, train_only
from pefttool_head.options import HeadOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

GENERATIVE = {"learning_rate": 3e-4}
OTHER = {"learning_rate": 1e-4, "head_learning_rate": 3e-3}


class HeadAdapter(Adapter):
    """Only the output layer trains, on a frozen backbone; on request the last blocks, too.

    `frozen_backbone` holds for the whole backbone by default, with train_last_layers=K up to the last K blocks.
    """

    name = "head"
    Options = HeadOptions
    frozen_backbone = True

    def defaults(self, task: Task) -> Mapping[str, Any]:
        return GENERATIVE if task.generative else OTHER

    def check(self, options: HeadOptions, facts: Facts) -> list[Problem]:
        problems = check_last_layers(options.train_last_layers, facts)
        if facts.recomputes and not options.train_last_layers:
            message = "adapter 'head' has no backward pass through the blocks, so they keep no activations; use none"
            problems.append(Problem("train.gradient_checkpointing", message))
        if not facts.head_modules and not facts.output_modules:
            problems.append(
                Problem("adapter.name", f"'head' finds no head or output layer in {facts.architecture}; use 'lora'")
            )
        return problems

    def attach(self, model: nn.Module, options: HeadOptions, facts: Facts) -> Attached:
        outputs = () if facts.head_modules else facts.output_modules
        wanted = [f"{m}.{n}" for m in outputs for n, _ in model.get_submodule(m).named_parameters()]
        integer = [n for n in wanted if not model.get_parameter(n).is_floating_point()]
        if integer:
            raise UsageError(
                f"adapter.name: 'head' trains {integer[0]!r}, which is stored as integers; load it without --quantize"
            )
        wanted += last_layer_parameters(model, facts, options.train_last_layers)
        attachment.claim(model, self.name, wanted)
        for module in outputs:
            _untie(model, module)
        train_only(model, wanted)
        return Attached(model, frozenset(wanted))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter's own tensors to head.safetensors, which the core adds new heads to, and a loader."""
        from pefttool_head.loader import LOADER, source

        held = attachment.held_by(model)
        named = dict(model.named_parameters())
        folder.mkdir(parents=True, exist_ok=True)
        peft_folder.write_tensors(
            folder / peft_folder.HEAD, {n: named[n] for n in (held.parameters if held is not None else ())}
        )
        text = source(model)
        if text is not None:
            (folder / LOADER).write_text(text, encoding="utf-8")

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        stored, buffers = peft_folder.read_tensors(folder / peft_folder.HEAD), dict(model.named_buffers())
        tensors = {n: tensor for n, tensor in stored.items() if n not in buffers}  # those are the core's
        shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
        for tensor_name, tensor in tensors.items():
            if shapes.get(tensor_name) != tensor.shape:
                raise ModelError(
                    f"{folder / peft_folder.HEAD}: {tensor_name!r} {list(tensor.shape)} has no place of this shape in"
                    f" {type(model).__name__}; load it onto the base it was trained on"
                )
        attachment.claim(model, self.name, tensors)
        for tensor_name, tensor in tensors.items():
            _place(model, tensor_name, tensor)
        model.requires_grad_(False)
        return model.eval()

    def merge(self, model: nn.Module) -> nn.Module:
        """Nothing is beside the weights: the model is already plain (with an output layer of its own)."""
        attachment.release(model)
        return model


def _untie(model: nn.Module, module: str) -> None:
    """Give an output layer weights of its own, so that training it leaves the embedding alone."""
    for name, parameter in model.get_submodule(module).named_parameters():
        _place(model, f"{module}.{name}", parameter.detach().clone())


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor`, as float32, where parameter `name` is; a parameter that is tied to another is replaced alone."""
    from torch.nn import Parameter

    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    holders = [n for n, p in model.named_parameters(remove_duplicate=False) if p is old]
    setattr(owner, leaf, Parameter(tensor.float().to(old.device), requires_grad=False))
    config: Any = getattr(model, "config", None)
    if len(holders) > 1 and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
