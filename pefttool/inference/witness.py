"""What the trained model holds, and answers to a few held-out rows: kept until the saved adapter is loaded again.

Files that hold every trained value do not show that an adapter's `load` puts them back; nor does anything show what a
file of the adapter's own form holds, but its loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.errors import ModelError, RunError
from pefttool.files import fingerprint
from pefttool.inference import agreement, recorded_calls
from pefttool.inference.agreement import Agreement
from pefttool.inference.predictor import Predictor, without_features
from pefttool.setup.prepared import Prepared

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pefttool.inference.recorded_calls import Call, Outputs

#: Rows that are asked.
ROWS = 4
#: Positions of an answer that are kept, the last ones: a vocabulary's logits are large, and these wait in memory.
POSITIONS = 8
#: How far the same calls of the same weights may be apart. On a CPU nothing is; other hardware may add up otherwise.
ROUNDING = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
#: And as a share of what the adapter does: one tensor that is lost may do little in half precision.
SHARE = 0.02


@dataclass(frozen=True)
class Witness:
    """The calls that were recorded of the task, the trained model's answers to each (float32, on the CPU), and by name
    the checksums of what training made of it."""

    calls: Sequence[Call]
    answers: Sequence[Outputs]
    values: Mapping[str, tuple[int, int]]
    dtypes: Mapping[str, torch.dtype]
    precision: str
    compiled: bool = False
    #: It was asked in another process, which may have added up otherwise (other threads).
    elsewhere: bool = False

    def require_values(self, model: nn.Module, folder: Path) -> None:
        """Raise ModelError if the loaded `model` has another value under the name of one that was trained.

        It may call them otherwise, or compute them in another dtype: then its answers alone are compared.
        """
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        alike = {n: named[n] for n in self.values if n in named and named[n].dtype == self.dtypes[n]}
        sums = dict(zip(alike, fingerprint.checksums(list(alike.values())), strict=True))
        others = [name for name, found in sums.items() if found != self.values[name]]
        if others:
            raise ModelError(
                f"{folder}: once it is loaded, {len(others)} of {len(self.values)} trained tensors have other values"
                f" than were trained, such as {others[0]}: {LOSES}"
            )

    def agrees(self, loaded: Iterable[Outputs], base: Iterable[Outputs] | None, folder: Path) -> Agreement:
        """How the loaded adapter's answers to the same calls compare with those of the trained model.

        Raises ModelError where it answers otherwise. `base` is what the model answers without an adapter.
        """
        try:
            found = agreement.compare(self.answers, _last(loaded))
        except ValueError as error:
            raise ModelError(f"{folder}: {error}: {LOSES}") from error
        allowed = ROUNDING[self.precision] * (10 if self.compiled else 1)
        if base is not None and not (self.compiled or self.elsewhere):
            allowed = min(
                allowed, max(SHARE * agreement.compare(self.answers, _last(base)).typical, ROUNDING["float32"])
            )
        if not found.typical <= allowed:
            raise ModelError(f"{folder} does not answer as the trained model did: {found}: {LOSES}")
        return found


#: What a difference means.
LOSES = "its adapter's save() or load() loses something of what was trained; mend it, or report this"


def hear(prepared: Prepared) -> Witness | None:
    """Ask the trained model; None where nobody will compare, or the task never calls it."""
    plan, base, adapted = prepared.plan, prepared.base, prepared.adapted
    recipe = plan.recipe
    if recipe.check == "none" or recipe.memory.stream or recipe.memory.offload:
        return None
    examples = [without_features(example) for example in prepared.data.held_out.examples[:ROWS]]
    predictor = Predictor.of(plan, replace(base, setting=replace(base.setting, packing=False)), adapted.model)
    try:
        calls = recorded_calls.calls(predictor, examples)
    except RunError:
        return None
    answers = tuple(_last(recorded_calls.made(adapted.model, calls, plan.choice)))
    made = {**adapted.parameters(), **adapted.changed_buffers()}
    values = dict(zip(made, fingerprint.checksums(list(made.values())), strict=True))
    dtypes = {name: tensor.dtype for name, tensor in made.items()}
    return Witness(calls, answers, values, dtypes, plan.choice.autocast or plan.choice.dtype, recipe.train.compile)


def _last(answers: Iterable[Outputs]) -> Iterator[Outputs]:
    for outputs in answers:
        yield {n: t[:, -POSITIONS:].clone() if t.ndim > 2 else t for n, t in outputs.items()}
