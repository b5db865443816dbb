"""What makes training smaller or faster without changing what is learnt: put on an adapted model, real or simulated."""

from __future__ import annotations

from pefttool.nn import compiling, cpu, gradient_checkpointing
from pefttool.setup.attach import Adapted
from pefttool.setup.plan import Plan
from pefttool.toolkit import peft_folder


def apply(plan: Plan, adapted: Adapted, simulated: bool = False) -> None:
    """Do with `adapted`, in place, what the recipe and the device ask for. A simulation does all but compile."""
    if plan.choice.device == "cpu":
        cpu.quicken(adapted.model)
    checkpointing = plan.recipe.train.gradient_checkpointing
    if checkpointing != "none":
        gradient_checkpointing.install(adapted.model, reentrant=checkpointing == "reentrant")
    if "activations" in plan.recipe.memory.offload:
        from pefttool.nn import activation_offload

        activation_offload.install(adapted.model)
    if plan.recipe.train.compile and not simulated:
        prefix = peft_folder.root(adapted.model)
        compiling.install(adapted.model.get_submodule(f"{prefix}{name}") for name in plan.facts.layers)
