"""What a model answers to rows, as tensors: the task's own call of the model, recorded once and made again on others.

So the adapted model, the base, the merged model, and plain transformers in another process are asked the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.inference.predictor import Predictor, inference
from pefttool.toolkit import peft_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.setup.devices import Choice

#: Fields of a model's output that are not its answer: what lies on the way there.
INSIDE = re.compile(r"hidden|attention|past_key|loss|cache")
#: Positions of a row's answer that are looked at, the last ones: a vocabulary's logits are large.
POSITIONS = 64

Outputs = dict[str, "Tensor"]


@dataclass(frozen=True)
class Call:
    """One call of a model: its arguments by name (by number, where they were given by place), on the CPU."""

    arguments: Mapping[str, Any]

    def make(self, model: nn.Module, device: str = "cpu") -> Outputs:
        """What `model` answers, float32 on the CPU."""
        import torch

        def there(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        placed = [there(v) for k, v in sorted(self.arguments.items()) if k.isdecimal()]
        named = {k: there(v) for k, v in self.arguments.items() if not k.isdecimal()}
        return answers(model(*placed, **named))


def answers(output: Any) -> Outputs:
    """The tensors of a model's output that are its answer, by name; of long rows the last positions, float32, CPU."""
    import torch

    if isinstance(output, torch.Tensor):
        found = {"output": output}
    elif isinstance(output, dict):  # transformers' own: what lies on the way to the answer is in it, too
        found = {name: value for name, value in output.items() if not INSIDE.search(name)} or dict(output)
    else:
        found = dict(vars(output))
    return {
        name: (value[:, -POSITIONS:] if value.ndim > 2 else value).detach().float().cpu()
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


def calls(predictor: Predictor, examples: Sequence[Mapping[str, Any]]) -> list[Call]:
    """How the task calls its model for each of these encoded rows, alone. Raises RunError if the task never does."""
    found = []
    for example in examples:
        seen: list[Call] = []

        def note(module: nn.Module, placed: tuple[Any, ...], named: dict[str, Any], seen: list[Call] = seen) -> None:
            arguments = {**{str(i): value for i, value in enumerate(placed)}, **named}
            seen.append(Call({name: _kept(value) for name, value in arguments.items()}))

        # The task's own call: before what others do to its arguments, which is done again when the call is made again.
        handle = predictor.model.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
        try:
            with predictor.inference():
                predictor.loss(predictor.batch([example]))
        finally:
            handle.remove()
        if not seen:
            name = predictor.task.name
            raise RunError(f"task {name!r} computes its loss without calling the model: it cannot be compared")
        found.append(seen[-1])  # before it there may be one that only asks what the model can do
    return found


def _kept(value: Any) -> Any:
    import torch

    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def made(model: nn.Module, recorded: Sequence[Call], choice: Choice) -> Iterator[Outputs]:
    """The answers to these calls, one by one, in evaluation mode and the run's precision."""
    for call in recorded:
        with inference(model, choice):
            yield call.make(model, choice.device)


def write(folder: Path, recorded: Sequence[Call]) -> None:
    """The calls as files that a process without pefttool reads: N.safetensors and calls.json."""
    import torch

    plain = []
    for number, call in enumerate(recorded):
        tensors = {k: v for k, v in call.arguments.items() if isinstance(v, torch.Tensor)}
        others = {k: v for k, v in call.arguments.items() if k not in tensors}
        peft_folder.write_tensors(folder / f"{number}.safetensors", tensors)
        plain.append(others)
    (folder / "calls.json").write_text(json.dumps(plain), encoding="utf-8")


class Spilled:
    """Answers in files of `folder`, one for each call: a vocabulary's logits of many rows would not fit in memory."""

    def __init__(self, folder: Path, name: str, answered: Iterator[Outputs]) -> None:
        self._files = []
        for number, outputs in enumerate(answered):
            path = folder / f"{name}-{number}.safetensors"
            peft_folder.write_tensors(path, outputs)
            self._files.append(path)

    def __iter__(self) -> Iterator[Outputs]:
        return (peft_folder.read_tensors(path) for path in self._files)


def exclusive(model: nn.Module) -> bool:
    """Whether logits of this model are of classes that exclude each other (as far as its configuration says)."""
    return getattr(getattr(model, "config", None), "problem_type", None) in (None, "single_label_classification")
