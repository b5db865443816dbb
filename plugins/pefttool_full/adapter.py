"""Full fine-tuning: the base's own weights train, in float32; what is saved is a complete transformers model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttool import Adapter, Attached, Facts, ModelError, Problem, Task, one_line
from pefttool.toolkit import attachment
from pefttool.toolkit.model_parts import check_last_layers, last_layer_parameters, train_only, transformers_part
from pefttool.toolkit.peft_folder import stored_dtypes
from pefttool.toolkit.quiet import quiet_loading
from pefttool_full.options import FullOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

GENERATIVE = {"learning_rate": 5e-5}
OTHER = {"learning_rate": 1e-4, "head_learning_rate": 1e-3}


class FullAdapter(Adapter):
    """Every parameter of the model trains, or the last blocks; the result is a plain model."""

    name = "full"
    Options = FullOptions
    trains_base = True

    def defaults(self, task: Task) -> Mapping[str, Any]:
        return GENERATIVE if task.generative else OTHER

    def check(self, options: FullOptions, facts: Facts) -> list[Problem]:
        if facts.quantizer is not None:
            return [
                Problem(
                    "adapter.name",
                    f"'full' trains the base's own weights, which {facts.quantizer!r} stores as integers; train"
                    " the 16-bit model (without --quantize), or use 'lora'",
                )
            ]
        return check_last_layers(options.train_last_layers, facts)

    def attach(self, model: nn.Module, options: FullOptions, facts: Facts) -> Attached:
        heads = tuple(f"{module}." for module in facts.head_modules)
        if options.train_last_layers is None:
            trained = [n for n, _ in model.named_parameters() if not (heads and n.startswith(heads))]
            trained = list(facts.used(trained))
        else:
            trained = last_layer_parameters(model, facts, options.train_last_layers)
        attachment.claim(model, self.name, trained)
        train_only(model, trained)
        return Attached(model, frozenset(trained))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write config.json and model.safetensors, without shortcuts to the base: what trained in float32, and what
        stayed in the run's precision as it was there.

        Of a model with a task's own head, the transformers model inside is written; the core adds head.safetensors.
        """
        part = _part(model)
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_loading():
            part.save_pretrained(folder)
        # What trained is to be loaded as it is; transformers goes by the first parameter, which may be a frozen one.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        import torch
        from safetensors import SafetensorError

        part = _part(model)
        try:
            with quiet_loading():
                saved, report = type(part).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            # transformers fills what a file lacks with random numbers.
            if report["missing_keys"]:
                raise ValueError(f"it lacks {min(report['missing_keys'])!r}")
            part.float().load_state_dict(saved.state_dict())
            _as_stored(part, folder)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} cannot be loaded as {type(part).__name__}: {one_line(error)}; restore the adapter folder"
            ) from error
        attachment.claim(model, self.name)
        model.requires_grad_(False)
        return model.eval()

    def merge(self, model: nn.Module) -> nn.Module:
        """Nothing is beside the weights: the model is already plain."""
        attachment.release(model)
        return model


def _as_stored(part: nn.Module, folder: Path) -> None:
    """Give what did not train the dtype of its file: computed in another, its numbers would be rounded otherwise."""
    stored = {n: dtype for path in folder.glob("model*.safetensors") for n, dtype in stored_dtypes(path).items()}
    for name, tensor in part.state_dict(keep_vars=True).items():
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(stored[name])


def _part(model: nn.Module) -> Any:
    part = transformers_part(model)
    if part is None:
        raise ModelError(f"adapter 'full' saves transformers models, and {type(model).__name__} holds none")
    return part
