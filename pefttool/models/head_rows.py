"""The rows of a pretrained head go by the names of their classes: data name them in an order of their own.

C classes of the data, P of the pretrained head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool.toolkit.class_names import listed

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What configs call the number of classes, beside the names themselves.
COUNTS = ("num_labels", "num_targets")
NAMES = "id2label"
#: Of rows that start new, where the config does not say.
INITIAL_DEVIATION = 0.02
#: For each class of the data the row of the pretrained head that is its, or None for a new one.
Rows = Sequence[int | None]


def names_of(described: Any) -> tuple[str, ...]:
    """The classes of a config's `id2label`, in the order of the outputs; () where it is not in order, or not there."""
    if not isinstance(described, Mapping) or set(described) != set(range(len(described))):
        return ()
    return tuple(str(described[i]) for i in range(len(described)))


def match(own: Sequence[str], wanted: Sequence[str]) -> Rows | None:
    """The row of each class `wanted` in a head with classes `own`: by name, or by one that differs in capitals alone.

    Numbers that are nobody's name are numbers of rows. None: the head's classes have no names (LABEL_0, LABEL_1) that
    could say anything, and stay as they are.
    """
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(own))
    names = [str(i) for i in range(len(own))] if unnamed else list(own)
    found = _by_name(names, wanted)
    if not any(row is not None for row in found):
        numbers = [int(name) if name.isdecimal() else -1 for name in wanted]
        if all(0 <= number < len(own) for number in numbers) and not unnamed:
            return numbers
    return None if unnamed and None in found else found


def _by_name(own: Sequence[str], wanted: Sequence[str]) -> Rows:
    exact = {name: row for row, name in enumerate(own) if own.count(name) == 1}
    folded, asked = Counter(name.casefold() for name in own), Counter(name.casefold() for name in wanted)
    alike = {name.casefold(): row for row, name in enumerate(own) if folded[name.casefold()] == 1}
    return [
        exact[name] if name in exact else alike.get(name.casefold()) if asked[name.casefold()] == 1 else None
        for name in wanted
    ]


@dataclass(frozen=True)
class Stored:
    """What the model's folder has of its parameters: `misfits` with another number of rows than the model, `missing`
    not at all (the misfits among them); `read` gives one by its name."""

    misfits: Sequence[str]
    missing: Sequence[str]
    read: Callable[[str], Tensor | None]


def settle(
    model: nn.Module,
    config: Any,
    described: Mapping[str, Any],
    stored: Stored,
    abstract: Callable[[Mapping[str, Any]], nn.Module],
) -> str | None:
    """Give the head of a freshly loaded `model` the rows of its own classes; what the user should know of it, or None.

    `described` is what the task said of the model's config, the data's classes among it; `config` is the folder's.
    Parameters whose stored values have another number of rows are random so far, and read from the folder here.
    `abstract` builds the model on the meta device, as it would be with such a description.
    """
    own, wanted = names_of(getattr(config, NAMES, None)), names_of(described.get(NAMES))
    rows = match(own, wanted) if own and wanted else None
    if rows is None or (list(rows) == list(range(len(own)))):
        return None
    live = dict(model.named_parameters())
    if len(own) == len(wanted):
        chosen = {name: live[name].detach().clone() for name in _by_class(live, wanted, described, abstract)}
        chosen = {name: tensor for name, tensor in chosen.items() if name not in stored.missing}
    else:
        read = {name: stored.read(name) for name in stored.misfits if name in live}
        chosen = {name: t for name, t in read.items() if t is not None and _same_but_rows(t, live[name], own, wanted)}
    for name, tensor in chosen.items():
        _fill(live[name], tensor, rows, len(own), float(getattr(config, "initializer_range", INITIAL_DEVIATION)))
    return _told(own, wanted, rows) if chosen else None


def _by_class(
    live: Mapping[str, Any],
    names: Sequence[str],
    described: Mapping[str, Any],
    abstract: Callable[[Mapping[str, Any]], nn.Module],
) -> list[str]:
    """The parameters with a row for each class: those that would have one more, were there one class more."""
    more = {**described, NAMES: {**described[NAMES], len(names): "one more"}}
    more |= {key: described[key] + 1 for key in COUNTS if key in described}
    more.pop("label2id", None)
    return [
        name
        for name, parameter in abstract(more).named_parameters()
        if parameter.dim()
        and name in live
        and live[name].dim() == parameter.dim()
        and live[name].shape[0] + 1 == parameter.shape[0]
        and live[name].shape[1:] == parameter.shape[1:]
        and live[name].shape[0] >= len(names)
    ]


def _same_but_rows(stored: Tensor, live: Tensor, own: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the tensors differ in the number of classes alone."""
    fits = stored.dim() == live.dim() and stored.shape[1:] == live.shape[1:] and len(stored) >= len(own)
    return fits and len(stored) - len(own) == len(live) - len(wanted)


def _fill(live: Tensor, tensor: Tensor, rows: Rows, own: int, deviation: float) -> None:
    """`live` `[C + k, ...]` from `tensor` `[P + k, ...]`: the k rows behind the classes' (DETR's "no object") stay."""
    import torch

    with torch.no_grad():
        for i, row in enumerate(rows):
            if row is not None:
                live[i].copy_(tensor[row])
            elif live.dim() > 1:
                live[i].normal_(0.0, deviation)
            else:
                live[i].zero_()
        live[len(rows) :].copy_(tensor[own:])


def _told(own: Sequence[str], wanted: Sequence[str], rows: Rows) -> str:
    new = [name for name, row in zip(wanted, rows, strict=True) if row is None]
    known = f"the model's head has rows for {len(own)} classes ({listed(own)})"
    if len(new) == len(wanted):
        return f"{known}, and for none of the training rows' ({listed(wanted)}): its output layer starts new"
    taken = f"{known}: those of the training rows' classes are taken by name"
    return f"{taken}, and {listed(new)} start{'s' if len(new) == 1 else ''} new" if new else taken
