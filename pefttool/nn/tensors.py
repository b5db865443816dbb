"""Parts of a model that several others need: the transformers model inside, the last blocks, stand-ins, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


#: Between a parameter or module and a tensor that hangs on it (the scales of a quantised weight).
CARRIED = " > "
#: Attributes that hold such tensors, or another such holder: bitsandbytes' QuantState and MatmulLtState.
HOLDERS = ("quant_state", "state2", "state")


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
