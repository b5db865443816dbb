"""Stage 5: base -> adapted model. Checks that exactly the declared parameters train, and in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool import added_positions, peft_folder, random_state
from pefttool.errors import PluginError
from pefttool.interfaces import Adapter
from pefttool.values import Attached, Facts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn import Parameter


@dataclass(frozen=True)
class Adapted:
    """An adapted model. `trainable` are the adapter's parameter names, `head` the task head's (the core's own).

    `still` are modules that run in evaluation mode while the rest trains: nothing in them or below them does, or they
    would change what no adapter's file holds. `base` are names of the base's parameters and buffers that do not train.
    """

    model: nn.Module
    trainable: tuple[str, ...]
    head: tuple[str, ...]
    identity_at_init: bool
    still: tuple[nn.Module, ...] = ()
    base: tuple[str, ...] = ()

    def parameters(self) -> dict[str, Parameter]:
        """Everything that trains, by name, adapter first."""
        named = dict(self.model.named_parameters())
        return {name: named[name] for name in (*self.trainable, *self.head)}


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
    order = tuple(n for n in named if n in declared)
    own = {id(tensor) for tensor in loaded}
    tensors = [*named.items(), *attached.model.named_buffers()]
    base = tuple(name for name, tensor in tensors if id(tensor) in own and not tensor.requires_grad)
    still = () if adapter.trains_base else frozen_norms(attached.model)
    return Adapted(attached.model, order, head, attached.identity_at_init, still, base)


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

    named = adapted.parameters()
    trained = head_values(adapted)
    with torch.no_grad():
        try:
            for name, value in head.items():
                named[name].copy_(value)
            with added_positions.disabled(adapter, adapted.model) if adapted.trainable else nullcontext():
                yield
        finally:
            for name, value in trained.items():
                named[name].copy_(value)
