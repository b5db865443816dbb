"""Parts of a model that several others need: the transformers model inside, the last blocks, stand-ins, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pefttool.api.values import Facts, Problem
from pefttool.nn import parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.api.task import Quantizer

KEY = "adapter.train_last_layers"
#: Between a parameter or module and a tensor that hangs on it (the scales of a quantised weight).
CARRIED = " > "
#: Attributes that hold such tensors, or another such holder: bitsandbytes' QuantState and MatmulLtState.
HOLDERS = ("quant_state", "state2", "state")


def transformers_part(model: nn.Module) -> Any:
    """`model` itself, or the transformers model in it (a task may put its own head on a bare backbone)."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return model
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if len(inside) == 1 else None


def names_of(model: nn.Module, *parts: nn.Module | None) -> tuple[str, ...]:
    """Where these modules are in `model`; those that are None are nowhere."""
    wanted = [part for part in parts if part is not None]
    return tuple(name for name, module in model.named_modules() if any(module is part for part in wanted))


def check_last_layers(count: int | None, facts: Facts) -> list[Problem]:
    """What is wrong with training the last `count` blocks of this model."""
    if not count:
        return []
    if not facts.layers:
        return [Problem(KEY, f"{count}: {facts.architecture} has no repeated blocks; remove this option")]
    if count > len(facts.layers):
        return [
            Problem(KEY, f"{count}: {facts.architecture} has {len(facts.layers)} blocks; use 1 to {len(facts.layers)}")
        ]
    if facts.quantizer is not None:
        return [
            Problem(
                KEY,
                f"{count}: blocks quantised with {facts.quantizer!r} cannot be trained; remove --quantize, or this"
                " option",
            )
        ]
    return []


def last_layer_parameters(model: nn.Module, facts: Facts, count: int) -> list[str]:
    """Names of the parameters of the last `count` blocks and of what follows them in the backbone (norm, pooler).

    The output layer and new task heads are left out, and so are blocks of other stacks (a decoder's).
    """
    from torch import nn

    chosen = tuple(f"{name}." for name in facts.layers[-count:]) if count else ()
    # A second stack's embeddings stand behind the first one's blocks, and are no part of them.
    stacks = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Embedding)
    )
    outside = tuple(f"{name}." for name in (*facts.head_modules, *facts.output_modules))
    names: list[str] = []
    for name, _ in model.named_parameters():
        follows = bool(names) and not name.startswith(stacks + outside)
        if follows or (chosen and name.startswith(chosen)):
            names.append(name)
    return list(facts.used(names))


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze everything but the parameters in `names`; those become float32, in place (ties stay tied)."""
    wanted = set(names)
    for name, parameter in model.named_parameters():
        train = name in wanted
        if train:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(train)


def held_by(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that the model keeps: parameters, buffers, attributes, and what bitsandbytes ties to a weight."""
    from torch import Tensor

    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for value in own:
            if isinstance(value, Tensor):
                yield value
                yield from _tied(value)


def _tied(weight: Tensor) -> Iterator[Tensor]:
    from torch import Tensor

    for value in vars(weight).values():
        state = value
        while state is not None and not isinstance(state, Tensor) and hasattr(state, "absmax"):
            yield from (t for t in vars(state).values() if isinstance(t, Tensor))
            state = getattr(state, "state2", None)
        if isinstance(value, Tensor):
            yield value


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with data, then what hangs on it; some of them may share memory."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "meta":
            yield name, tensor
            yield from _carried(f"{name}{CARRIED}", tensor)
    for name, module in model.named_modules():
        for holder in HOLDERS:
            if holder in vars(module):
                yield from _carried(f"{name}{CARRIED}{holder}.", vars(module)[holder])


def _carried(path: str, holder: Any) -> Iterator[tuple[str, Tensor]]:
    import torch

    for field, value in sorted(getattr(holder, "__dict__", {}).items()):
        if isinstance(value, torch.Tensor):
            yield path + field, value
        elif field in HOLDERS and value is not None:
            yield from _carried(f"{path}{field}.", value)


def passing_buffers(model: nn.Module) -> set[str]:
    """Names of buffers that are made anew whenever the model is built, and that no file holds."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def put_skeletons(model: nn.Module, quantizer: Quantizer, names: Iterable[str]) -> None:
    """Replace linears of a model on the meta device by what the quantizer would store them as, without weights."""
    import torch

    with torch.device("meta"):
        for name in names:
            linear: Any = model.get_submodule(name)
            model.set_submodule(name, quantizer.skeleton(linear, quantizer.Options()))


def stored_by(quantizer: Quantizer, model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Those of these linear layers of an unquantised (or abstract) model that the quantizer stores in fewer bits."""
    layers: Any = ((name, model.get_submodule(name)) for name in names)
    return tuple(name for name, linear in layers if quantizer.stores(name, linear))


def dequantise(model: nn.Module, quantizer: Quantizer, names: Iterable[str]) -> None:
    """Replace the quantised linears among these by plain ones with the weights that they multiply by, on the CPU."""
    import torch
    from torch import nn

    for name in names:
        layer: Any = model.get_submodule(name)
        if parameters.is_plain(layer):
            continue
        with torch.device("meta"):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(quantizer.dequantize(layer).cpu(), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    model.cpu()
    part = transformers_part(model)
    library = getattr(part, "hf_quantizer", None)
    if library is not None:
        own = {
            type(operation) for conversion in library.get_weight_conversions() for operation in conversion.operations
        }
        read = getattr(part, "_weight_conversions", None) or []
        # What read packed weights is not to be undone when plain ones are saved.
        part._weight_conversions = [c for c in read if own.isdisjoint(map(type, getattr(c, "operations", ())))]
        library.remove_quantization_config(part)


def replace_tensors(model: nn.Module, make: Callable[[str, Tensor], Tensor]) -> None:
    """Give every parameter and buffer another tensor, `make(name, tensor)`; what was shared stays shared.

    Tensors that a module keeps aside, as plain attributes, are replaced too.
    """
    import torch

    made: dict[int, Any] = {}

    def replaced(name: str, tensor: Tensor) -> Any:
        if id(tensor) not in made:
            new: Any = make(name, tensor)
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = (new, tensor)  # the original is kept, so that its id stays its own
        return made[id(tensor)][0]

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        replaced(name, tensor)
    for prefix, module in model.named_modules():
        for held in _tables(module):
            for key, tensor in list(held.items()):
                if isinstance(tensor, torch.Tensor):
                    held[key] = replaced(f"{prefix}.{key}", tensor)


def _tables(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Where else a module may keep tensors: in plain attributes, and in dictionaries (peft's virtual tokens)."""
    own = vars(module)
    yield own
    yield from (held for held in own.values() if type(held) is dict)
