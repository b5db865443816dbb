"""BitFit (arXiv:2106.10199) as a package of its own: a trained change to every bias of the backbone's linear layers.

The change is a parameter beside the frozen bias, added to the layer's output, so the base's bytes stay as they are.
"""

from typing import Literal

from pydantic import Field

from pefttool import Adapter, Attached, Options, Problem, claims, hookimpl, peft_folder

pefttool_api_version = 1
FILE, PARAMETER = "adapter.safetensors", "bitfit"


class BitFitOptions(Options):
    which: Literal["all", "attention"] = Field("all", description="biases of every linear layer, or of attention only")


class BitFit(Adapter):
    """Train the biases only (BitFit)."""

    name = "bitfit"
    Options = BitFitOptions

    def defaults(self, task):
        return {"learning_rate": 1e-2, "head_learning_rate": 3e-3}

    def check(self, options, facts):
        # Whether layers have biases is known once they exist; Llama's and its relatives' have none.
        if facts.model_type in ("llama", "mistral", "gemma"):
            return [Problem("adapter.name", f"'bitfit' trains biases, and {facts.architecture} has none; use 'lora'")]
        return []

    def attach(self, model, options, facts, name="default"):
        chosen = [m for m in facts.linear_modules if options.which == "all" or m.startswith(facts.attention_modules)]
        return Attached(model, self._add(model, [m for m in chosen if model.get_submodule(m).bias is not None], name))

    def _add(self, model, layers, name):
        import torch

        claims.claim(model, self.name, name)
        model.requires_grad_(False)
        for layer in map(model.get_submodule, layers):
            change = torch.zeros(layer.out_features, device=layer.bias.device)
            layer.register_parameter(PARAMETER, torch.nn.Parameter(change))
            layer.register_forward_hook(lambda module, _, output: output + module.bitfit.to(output.dtype))
        return frozenset(f"{layer}.{PARAMETER}" for layer in layers)

    def save(self, model, folder, name="default"):
        changes = {n: p for n, p in model.named_parameters() if n.endswith(f".{PARAMETER}")}
        folder.mkdir(parents=True, exist_ok=True)
        peft_folder.write_tensors(folder / FILE, changes)

    def load(self, model, folder, name="default"):
        stored = peft_folder.read_tensors(folder / FILE)
        self._add(model, [n.removesuffix(f".{PARAMETER}") for n in stored], name)
        for parameter_name, tensor in stored.items():
            model.get_parameter(parameter_name).data.copy_(tensor)
        return model.requires_grad_(False).eval()


@hookimpl
def register_adapters():
    return [BitFit()]
