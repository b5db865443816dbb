"""Stage 5: base -> adapted model. Checks that exactly the declared parameters train, and in float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pefttool.api.adapter import Adapter
from pefttool.api.errors import PluginError
from pefttool.api.facts import Facts
from pefttool.api.values import Attached
from pefttool.nn import added_positions
from pefttool.nn.tensors import passing_buffers
from pefttool.setup import random_state
from pefttool.toolkit import peft_folder

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn import Parameter


#: Elements up to which a buffer of the base may be a statistic of training.
STATISTIC = 1 << 20


@dataclass(frozen=True)
class Adapted:
    """An adapted model. `trainable` are the adapter's parameter names, `head` the task head's (the core's own).

    `eval_modules` are modules that run in evaluation mode while the rest trains: nothing in them or below them trains,
    or they would change for nothing. `base` are names of the base's parameters and buffers that do not train. `buffers`
    are those that training may change (the running statistics of batch norms), as they were before it.
    """

    model: nn.Module
    trainable: tuple[str, ...]
    head: tuple[str, ...]
    identity_at_init: bool
    eval_modules: tuple[nn.Module, ...] = ()
    base: tuple[str, ...] = ()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> dict[str, Parameter]:
        """Everything that trains, by name, adapter first."""
        named = dict(self.model.named_parameters())
        return {name: named[name] for name in (*self.trainable, *self.head)}

    def changed_buffers(self) -> dict[str, Tensor]:
        """Those of `buffers` that are not as they were, by name: the live ones."""
        live = dict(self.model.named_buffers())
        known = {name: start for name, start in self.buffers.items() if name in live}
        return {name: live[name] for name, start in known.items() if not live[name].equal(start.to(live[name].device))}

    def state(self) -> dict[str, Tensor]:
        """All that training has made of the model, copied to the CPU: what trains, and the buffers that it changed."""
        made = {**self.parameters(), **self.changed_buffers()}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in made.items()}

    def put_back(self, state: Mapping[str, Tensor]) -> None:
        """Make the model what it was when `state` was taken of it. KeyError for a name that it lacks."""
        import torch

        live: dict[str, Tensor] = {**self.parameters(), **dict(self.model.named_buffers())}
        before = {name: self.buffers[name] for name in self.changed_buffers()}
        with torch.no_grad():
            for name, value in {**before, **state}.items():
                live[name].copy_(value)

    def delivered_buffers(self) -> dict[str, Tensor]:
        """Buffers of the base and of its task head that an adapter is delivered with, by plain name: what training
        changed of those that a model's file holds."""
        prefix, owned = peft_folder.root(self.model), set(self.base)
        passing = passing_buffers(self.model)
        found = {n: b for n, b in self.changed_buffers().items() if n in owned and n not in passing}
        return {(peft_folder.plain_name(name, prefix) or name): buffer for name, buffer in found.items()}


def attach(model: nn.Module, adapter: Adapter, options: Any, facts: Facts) -> Adapted:
    """Attach `adapter`, then make the task heads trainable: an adapter's author cannot forget them.

    Raises PluginError if the adapter trains other parameters or modules than it declared, or not in float32.
    """
    import torch

    random_state.seed(facts.seed)
    loaded = [*model.parameters(), *model.buffers()]
    attached = adapter.attach(model, options, facts)
    added_positions.install(attached.model, adapter.added_positions(options, facts))
    heads = peft_folder.head_parameters(attached.model, facts.head_modules)
    for parameter in heads.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    identities = {id(p) for p in heads.values()}
    named = dict(attached.model.named_parameters())
    head = tuple(n for n, p in named.items() if id(p) in identities)
    training = {n for n, p in named.items() if p.requires_grad}
    declared = attached.trainable - set(head)
    extra, missing = sorted(training - declared - set(head)), sorted(declared - training)
    if extra or missing:
        what = (
            f"trains {extra[0]!r} without declaring it" if extra else f"declares {missing[0]!r} but does not train it"
        )
        more = len(extra) + len(missing) - 1
        raise PluginError(
            f"adapter {adapter.name!r} {what}" + (f" (and {more} more)" if more else "") + ": mend its attach()"
        )
    if attached.modules:
        _require_modules(adapter, attached)
    low = [n for n in training if named[n].dtype != torch.float32]
    if low:
        raise PluginError(
            f"adapter {adapter.name!r}: {low[0]!r} trains in {named[low[0]].dtype}, expected float32: mend its attach()"
        )
    for name in training:  # what an adapter made where the embeddings are, and those may be in host memory
        if not named[name].is_meta:
            named[name].data = named[name].data.to(facts.device)
    for buffer in training_buffers(attached.model).values():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    order = tuple(n for n in named if n in declared)
    own = {id(tensor) for tensor in loaded}
    tensors = [*named.items(), *attached.model.named_buffers()]
    base = tuple(name for name, tensor in tensors if id(tensor) in own and not tensor.requires_grad)
    still = () if adapter.trains_base else frozen_norms(attached.model)
    before = {name: buffer.clone() for name, buffer in small_buffers(attached.model, own).items()}
    return Adapted(attached.model, order, head, attached.identity_at_init, still, base, before)


def small_buffers(model: nn.Module, loaded: Collection[int] | None = None) -> dict[str, Tensor]:
    """Buffers that may be statistics of training, with data: by their size (not a quantised base's), and an adapter's
    own of any size, which are those whose `id` is not among the `loaded` ones."""
    own = set() if loaded is None else {id(b) for b in model.buffers()} - set(loaded)
    named = model.named_buffers()
    return {name: b for name, b in named if (b.numel() <= STATISTIC or id(b) in own) and not b.is_meta}


def training_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are expected to change: those beside a parameter that trains, in one module."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        for name, buffer in module.named_buffers(recurse=False)
    }


def _require_modules(adapter: Adapter, attached: Attached) -> None:
    """Raise PluginError unless what trains lies in the modules that the adapter declares, and each of them trains."""
    root = peft_folder.root(attached.model)
    owned = {module: f"{root}{module}." for module in attached.modules}
    inside = tuple(owned.values())
    astray = sorted(name for name in attached.trainable if not name.startswith(inside))
    if astray:
        raise PluginError(
            f"adapter {adapter.name!r} trains {astray[0]!r} ({len(astray)} such parameters), which is in none of the"
            f" {len(inside)} modules that it was to change: mend its attach()"
        )
    idle = [module for module, start in owned.items() if not any(n.startswith(start) for n in attached.trainable)]
    if idle:
        raise PluginError(
            f"adapter {adapter.name!r} was to change {idle[0]!r} ({len(idle)} such modules), and nothing trains in it:"
            " mend its attach()"
        )


def frozen_norms(model: nn.Module) -> tuple[nn.Module, ...]:
    """Batch norms without a parameter that trains: in training mode their statistics would follow the batches."""
    return tuple(
        module
        for module in model.modules()
        if getattr(module, "running_mean", None) is not None
        and not any(parameter.requires_grad for parameter in module.parameters())
    )


def head_values(adapted: Adapted) -> dict[str, Tensor]:
    """The task head's parameters as they are now, copied."""
    named = adapted.parameters()
    return {name: named[name].detach().clone() for name in adapted.head}


@contextmanager
def without(adapted: Adapted, adapter: Adapter, head: Mapping[str, Tensor]) -> Iterator[None]:
    """The base as it was before training: the adapter switched off, and these values in the task head."""
    import torch

    trained = {**head_values(adapted), **{n: b.clone() for n, b in adapted.changed_buffers().items()}}
    with torch.no_grad():
        try:
            adapted.put_back(head)
            with added_positions.disabled(adapter, adapted.model) if adapted.trainable else nullcontext():
                yield
        finally:
            adapted.put_back(trained)
