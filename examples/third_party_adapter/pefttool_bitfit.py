"""BitFit (arXiv:2106.10199) as a package of its own: a trained change to every bias of the backbone's linear layers.

The change is a parameter beside the frozen bias, added to the layer's output, so the base's bytes stay as they are.
"""

from typing import Literal

from pydantic import Field

from pefttool import Adapter, Attached, Options, Problem, UsageError, hookimpl
from pefttool.toolkit import attachment, peft_folder

pefttool_api_version = 2
FILE = "adapter.safetensors"


class BitFitOptions(Options):
    which: Literal["all", "attention"] = Field("all", description="biases of every linear layer, or of attention only")


class BitFit(Adapter):
    """Train the biases only (BitFit)."""

    name = "bitfit"
    Options = BitFitOptions

    def defaults(self, task):
        return {"learning_rate": 1e-2, "head_learning_rate": 3e-3}

    def check(self, options, facts):
        if facts.model_type in ("llama", "mistral", "gemma"):  # the best known; attach() finds the others
            return [Problem("adapter.name", no_biases(facts.architecture))]
        return []

    def attach(self, model, options, facts):
        inside = tuple(f"{module}." for module in facts.attention_modules) if options.which == "attention" else ""
        layers = [n for n in facts.linear_modules if n.startswith(inside) and model.get_submodule(n).bias is not None]
        if not layers:
            raise UsageError(f"adapter.name: {no_biases(facts.architecture)}")
        return Attached(model, self._add(model, layers))

    def _add(self, model, layers):
        import torch

        attachment.claim(model, self.name)  # a second adapter is refused here
        model.requires_grad_(False)
        for layer in map(model.get_submodule, layers):
            layer.bitfit = torch.nn.Parameter(torch.zeros(layer.out_features, device=layer.bias.device))
            layer.bitfit_hook = layer.register_forward_hook(lambda m, _, output: output + m.bitfit.to(output.dtype))
        return frozenset(f"{layer}.bitfit" for layer in layers)

    def save(self, model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        peft_folder.write_tensors(folder / FILE, {n: p for n, p in model.named_parameters() if n.endswith(".bitfit")})

    def load(self, model, folder):
        changes = peft_folder.read_tensors(folder / FILE)
        self._add(model, [n.removesuffix(".bitfit") for n in changes])
        for parameter, change in changes.items():
            model.get_parameter(parameter).data.copy_(change)
        return model.requires_grad_(False).eval()

    def merge(self, model):
        for layer in [m for m in model.modules() if hasattr(m, "bitfit")]:
            layer.bias.data += layer.bitfit.data
            layer.bitfit_hook.remove()
            del layer.bitfit, layer.bitfit_hook
        attachment.release(model)
        return model


def no_biases(architecture):
    return f"'bitfit' trains the biases of linear layers, and {architecture} has none that were asked for; use 'lora'"


@hookimpl
def register_adapters():
    return [BitFit()]
