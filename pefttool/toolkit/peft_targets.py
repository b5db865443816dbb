"""Which layers peft adapts: those that are named, also in models whose layers transformers 5 has rewritten.

Where transformers 5 keeps a model's experts in one tensor, peft takes every name that ends as a single expert's layer
did (`gate_proj`, `w1`) for the experts, even the full name of a dense layer that is still there. It finds out by the
model's type. So the type is out of its sight while peft wraps a model here; and in a saved adapter_config.json, which
plain peft reads by that type, such a layer is named by its weight (`target_parameters`), which nothing rewrites.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["rewritten"]

WEIGHT = ".weight"
#: The one method whose targets peft rewrites.
REWRITTEN = "LORA"
_ABSENT = object()


def rewritten(model_type: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of these module names that peft would take for experts, in a model of this type."""
    names = tuple(names)
    ends = {end for end in {name.rpartition(".")[2] for name in names} if _rewrites(model_type, end)}
    return tuple(name for name in names if name.rpartition(".")[2] in ends)


def _rewrites(model_type: str, name: str) -> bool:
    """Asks peft itself what it makes of a target of this name."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config: Any = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, _typed(model_type), None)
    except ValueError:  # half of what it would fuse: it would look for the rest
        return True
    return bool(config.target_modules != {name})


def _typed(model_type: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


@contextmanager
def as_named(model: nn.Module, config: Any) -> Iterator[None]:
    """While peft wraps `model` in here, names in `config.target_modules` are those of the model's own layers."""
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) or not rewritten(_type(model), targets or ()):
        yield
        return
    described: Any = model.config
    own = vars(described).get("model_type", _ABSENT)
    described.model_type = ""
    try:
        yield
    finally:
        if own is _ABSENT:
            del described.model_type
        else:
            described.model_type = own


def adapted(model: Any) -> tuple[str, ...]:
    """Plain names of the layers of a wrapped model that have an update, in the model's order."""
    inside = model.get_base_model().named_modules()
    return tuple(module for module, layer in inside if len(getattr(layer, "lora_A", ())))


def for_plain_peft(config: Any, model: Any) -> None:
    """Change the config of an adapter that is about to be saved to one that plain peft does not rewrite.

    Dropout is left out of it: it does nothing to a trained adapter, and peft refuses it beside `target_parameters`.
    """
    if getattr(config, "peft_type", None) != REWRITTEN:
        return
    layers = adapted(model)
    moved = rewritten(_type(model), layers)
    if moved:
        config.target_modules = sorted(set(layers) - set(moved))
        config.target_parameters = sorted({*(config.target_parameters or ()), *(layer + WEIGHT for layer in moved)})
        config.lora_dropout = 0.0


def from_saved(config: Any, model: nn.Module) -> None:
    """Undo `for_plain_peft`: an update beside a layer gives what one of its weight does, and quantised ones, too."""
    from torch import nn

    parameters = tuple(getattr(config, "target_parameters", None) or ())
    layers = dict(model.named_modules())
    owners = tuple(p.removesuffix(WEIGHT) for p in parameters if p.endswith(WEIGHT))
    moved = [o for o in rewritten(_type(model), owners) if isinstance(layers.get(o), nn.Linear)]
    if moved:
        config.target_modules = {*(config.target_modules or ()), *moved}
        config.target_parameters = sorted(set(parameters) - {owner + WEIGHT for owner in moved}) or None


def _type(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))
