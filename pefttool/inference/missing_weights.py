"""What a model's files lack: what the task uses of it is trained and saved with the head, or the run is refused.

Such a part is random. Frozen, it would be in no file, and whoever loads the adapter would get other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pefttool.api.errors import ModelError
from pefttool.api.facts import Facts
from pefttool.data.batches import two_short
from pefttool.data.encoding import Encoded
from pefttool.inference.predictor import Predictor
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.setup.precision import autocast
from pefttool.toolkit import peft_folder
from pefttool.toolkit.random_numbers import forked

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter


def settle(plan: Plan, base: Base, data: Encoded, warn: Callable[[str], object]) -> tuple[Plan, Base]:
    """(plan, base): parts of the base that its files lack and its task uses, behind the blocks, join the head.

    `Base.missing` are then the others that the task uses: `require_trained` asks for them once the adapter is there.
    Nothing is said of weights that are not used, or that start alike everywhere (a bias at zero).
    """
    used = _used(plan, base, data)
    model = base.model
    joining = _joining(model, base.facts, used)
    inside = tuple(f"{module}." for module in joining)
    left = tuple(n for n in used if not n.startswith(inside) and not _constant(model.get_parameter(n)))
    base = replace(base, missing=left)
    if not joining:
        return plan, base
    for module in joining:
        for parameter in model.get_submodule(module).parameters():
            # Cloned: of a streamed model it may be a view of a file.
            parameter.data = parameter.data.float().clone()
    warn(
        f"{base.local.path} lacks {', '.join(joining)} of {base.facts.architecture}: new here, trained and saved with"
        " the head"
    )
    plan = replace(plan, facts=with_heads(plan.facts, joining))
    return plan, replace(base, facts=with_heads(base.facts, joining))


def require_trained(plan: Plan, base: Base, adapted: Adapted, warn: Callable[[str], object]) -> None:
    """Warn of random weights of the base that the adapter trains. Raises ModelError where the adapter does not."""
    if not base.missing:
        return
    root = peft_folder.root(adapted.model)
    trained = {peft_folder.plain_name(name, root) or name for name in adapted.parameters()}
    frozen = [name for name in base.missing if name not in trained]
    if frozen:
        raise ModelError(
            f"model {base.local.id}: its files lack {_first(frozen)}, which {base.facts.architecture} uses, and which"
            f" would stay random: adapter {plan.adapter.name!r} does not train it; get the whole model, give another,"
            " or use --adapter full"
        )
    warn(f"{base.local.path} lacks {_first(base.missing)} of {base.facts.architecture}: random at first, and trained")


def _first(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def with_heads(facts: Facts, modules: Iterable[str]) -> Facts:
    """These facts, where `modules` of the backbone belong to the head."""
    heads = (*facts.head_modules, *modules)
    inside = tuple(f"{module}." for module in heads)

    def outside(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if not f"{name}.".startswith(inside))

    return replace(
        facts,
        head_modules=heads,
        linear_modules=outside(facts.linear_modules),
        transposed_modules=outside(facts.transposed_modules),
        attention_modules=outside(facts.attention_modules),
        key_values=tuple(found for found in facts.key_values if not f"{found.module}.".startswith(inside)),
    )


def _used(plan: Plan, base: Base, data: Encoded) -> list[str]:
    """Names of the missing parameters that the loss of a row depends on: the model is asked."""
    import torch

    named = dict(base.model.named_parameters())
    asked = [n for n in base.facts.used(base.missing) if n in named and named[n].is_floating_point()]
    if not asked:
        return []
    predictor = Predictor.of(plan, base)
    batch = predictor.batch(two_short(data.examples))
    before = {name: parameter.requires_grad for name, parameter in named.items()}
    try:
        for name, parameter in named.items():
            parameter.requires_grad_(name in asked)
        with forked(plan.choice.device), torch.enable_grad(), autocast(plan.choice):
            loss = predictor.loss(batch).sum
        if not loss.requires_grad:
            return []
        gradients = torch.autograd.grad(loss, [named[name] for name in asked], allow_unused=True)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(before[name])
    return [name for name, gradient in zip(asked, gradients, strict=True) if gradient is not None]


def _constant(parameter: Parameter) -> bool:
    """All its values are the same: so norms and biases start, wherever the model is loaded."""
    return bool((parameter == parameter.flatten()[0]).all())


def _joining(model: nn.Module, facts: Facts, used: Sequence[str]) -> tuple[str, ...]:
    """The modules of these parameters that stand behind the blocks and are missing as a whole.

    None where the task has no head of its own: what is missing of a language model is no new head.
    """
    from torch import nn

    names = [name for name, _ in model.named_parameters()]
    blocks = [i for i, name in enumerate(names) if name.startswith(tuple(f"{layer}." for layer in facts.layers))]
    if not facts.head_modules or not blocks:
        return ()
    behind = set(names[blocks[-1] + 1 :])
    elsewhere = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Embedding)]
    outside = tuple(f"{name}." for name in (*elsewhere, *facts.output_modules))
    found = dict.fromkeys(name.rpartition(".")[0] for name in used if name in behind and not name.startswith(outside))
    return tuple(m for m in found if m and all(n in used for n in names if n.startswith(f"{m}.")))
