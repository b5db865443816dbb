"""Low-rank updates that begin in the directions of the data (EVA) and end where they are needed (AdaLoRA), in small.

Beside every linear layer trains `up @ diag(scale) @ down`. `scale` begins at 0, so that the model begins as the base.
"""

from contextlib import contextmanager
from itertools import islice

from pydantic import Field

from pefttool import Adapter, Attached, NotMergeable, Options, Problem, hookimpl
from pefttool.nn.embedding_offload import device_of
from pefttool.toolkit import attachment, peft_folder

pefttool_api_version = 2
FILE, KINDS = "adapter.safetensors", ("up", "scale", "down")
#: Batches that `prepare` looks at, and tokens that are taken of each; scales learn this much faster than directions.
BATCHES, TOKENS, FASTER = 2, 256, 10.0
#: What remains of the average of importance at every step.
REMEMBERED = 0.9


class RanksOptions(Options):
    rank: int = Field(8, ge=1, description="directions that every layer begins with")
    keep: float = Field(0.5, gt=0, le=1, description="share of all directions that stay after drop_after steps")
    drop_after: int = Field(20, ge=1, description="optimiser steps after which the least important directions go")


class Ranks(Adapter):
    """Low-rank updates with ranks that follow the data (EVA and AdaLoRA, in small)."""

    name = "ranks"
    Options = RanksOptions

    def defaults(self, task):
        return {"learning_rate": 2e-3}

    def check(self, options, facts):
        if facts.changed(_layers(facts)):
            return []
        return [Problem("adapter.name", f"'ranks' finds no linear layer in {facts.architecture}; use 'full'")]

    def attach(self, model, options, facts):
        import torch

        attachment.claim(model, self.name)
        model.requires_grad_(False)
        layers = facts.changed(_layers(facts))
        for name in layers:
            layer = model.get_submodule(name)
            shapes = (layer.out_features, options.rank), (options.rank,), (options.rank, layer.in_features)
            up, scale, down = (torch.empty(shape, device=_place(model, facts)) for shape in shapes)
            torch.nn.init.normal_(up, std=layer.out_features**-0.5)
            torch.nn.init.normal_(down, std=layer.in_features**-0.5)
            _add(layer, up, scale.zero_(), down, options)
        return Attached(model, frozenset(f"{name}.ranks.{kind}" for name in layers for kind in KINDS))

    def prepare(self, model, losses):
        """Let each `down` begin in the directions in which the layer's inputs vary most."""
        import torch

        seen = {module: [] for module in _updates(model).values()}
        for module in seen:
            module.looking = seen[module].append
        with torch.no_grad():
            for _ in islice(losses, BATCHES):
                pass
        for module, inputs in seen.items():
            module.looking = None
            directions = torch.linalg.svd(torch.cat(inputs), full_matrices=False).Vh if inputs else module.down.data
            module.down.data[: len(directions)] = directions[: len(module.down)]

    def param_groups(self, model, trainable, learning_rate):
        parameters = dict(model.named_parameters())
        scales = [parameters[name] for name in trainable if name.endswith(".scale")]
        others = [parameters[name] for name in trainable if not name.endswith(".scale")]
        return [{"params": others, "lr": learning_rate}, {"params": scales, "lr": FASTER * learning_rate}]

    def after_step(self, model, step):
        import torch

        updates = list(_updates(model).values())
        for module in updates:
            size = module.scale.data.abs() * module.up.data.norm(dim=0) * module.down.data.norm(dim=1)
            module.importance = REMEMBERED * module.importance + (1 - REMEMBERED) * size
        if step == updates[0].options.drop_after:
            every = torch.cat([module.importance for module in updates])
            least = every.sort(descending=True).values[max(1, round(len(every) * updates[0].options.keep)) - 1]
            for module in updates:  # one direction stays in every layer
                module.kept = (module.importance >= least) | (module.importance == module.importance.max())
        for module in updates:  # momentum moves what has no gradient any more
            module.scale.data[~module.kept] = 0

    def training_state(self, model):
        return {n: {"importance": m.importance, "kept": m.kept} for n, m in _updates(model).items()}

    def restore_training_state(self, model, state):
        for name, module in _updates(model).items():
            for kind, value in state[name].items():
                setattr(module, kind, value.to(module.scale.device))

    def save(self, model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{n}.{kind}": getattr(m, kind) for n, m in _updates(model).items() for kind in KINDS}
        peft_folder.write_tensors(folder / FILE, tensors)

    def load(self, model, folder):
        tensors = peft_folder.read_tensors(folder / FILE)
        attachment.claim(model, self.name)
        for name in sorted({key.rpartition(".")[0] for key in tensors}):
            parts = (tensors[f"{name}.{kind}"].to(device_of(model)) for kind in KINDS)
            _add(model.get_submodule(name), *parts)
        return model.requires_grad_(False).eval()

    def merge(self, model):
        for name, module in _updates(model).items():
            layer = model.get_submodule(name)
            if not layer.weight.is_floating_point():
                raise NotMergeable(f"adapter 'ranks': {name} is stored as integers; load the base without --quantize")
            layer.weight.data += ((module.up * module.scale) @ module.down).to(layer.weight.dtype)
            module.hook.remove()
            del layer.ranks
        attachment.release(model)
        return model

    @contextmanager
    def disabled(self, model):
        updates = list(_updates(model).values())
        for module in updates:
            module.enabled = False
        try:
            yield
        finally:
            for module in updates:
                module.enabled = True


def _layers(facts):
    return tuple(name for name in facts.linear_modules if name not in facts.transposed_modules)


def _place(model, facts):
    return "meta" if facts.abstract else device_of(model)


def _updates(model):
    """The updates by the names of their layers."""
    return {n.removesuffix(".ranks"): m for n, m in model.named_modules() if n.endswith(".ranks")}


def _add(layer, up, scale, down, options=None):
    import torch

    class Update(torch.nn.Module):
        def forward(self, x):
            x = x.float()
            if self.looking is not None:
                self.looking(x.flatten(0, -2)[:TOKENS])
            return (x @ self.down.T * self.scale) @ self.up.T

    module = layer.ranks = Update()
    module.up, module.scale, module.down = map(torch.nn.Parameter, (up, scale, down))
    module.importance, module.kept = torch.zeros_like(scale), torch.ones_like(scale, dtype=torch.bool)
    module.enabled, module.looking, module.options = True, None, options

    def added(layer, inputs, output):
        return output + module(inputs[0]).to(output.dtype) if module.enabled else output

    module.hook = layer.register_forward_hook(added)


@hookimpl
def register_adapters():
    return [Ranks()]
