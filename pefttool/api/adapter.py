"""What an adapter plugin implements: how a pretrained model is wrapped, saved, loaded and merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pefttool.api.errors import NotMergeable
from pefttool.api.facts import Facts
from pefttool.api.options import Options
from pefttool.api.task import Task
from pefttool.api.values import Attached, Loss, Problem

if TYPE_CHECKING:
    from torch import nn


class Adapter(ABC):
    """A way of making a frozen pretrained model trainable. One object serves all runs: keep no state in it.

    A run calls these methods in the order in which they stand here, which is that of the first calls. Those in brackets
    are called where a run has a reason to.

    plan: defaults, positions_taken, added_positions, keeps_rows_apart, check, notices
    attach: attach
    train: prepare, param_groups, after_step, training_state, [restore_training_state]
    deliver: save, [disabled], [switches_off]
    use: [load], [merge]

    `plan` comes before any weight is loaded. A forecast of the memory attaches to an abstract model (`facts.abstract`).
    A rehearsal of the longest batch (`train.rehearse`) ends with a `save` before the first step. After every step comes
    `after_step`, then the checkpoint that is due, with `training_state`; `restore_training_state` follows where a run
    goes on, or delivers an earlier step. `load` and `merge` belong to `eval`, `predict`, `check` and `merge`, and begin
    with a plain base.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    #: No parameter of the backbone and nothing inside it trains: its features are the same at every step.
    frozen_backbone: ClassVar[bool] = False
    #: The adapter may change the base's own weights (full fine-tuning); a quantised base is then refused.
    trains_base: ClassVar[bool] = False
    #: Rows that lie one behind another in one sequence stay apart (a prefix in front of the sequence is the first's).
    packs: ClassVar[bool] = True
    #: `load` and `merge` also take a part of the model: plain linear layers by their own names and nothing else, with a
    #: folder in peft's layout that holds only what is theirs. So a merge never has the whole model in memory.
    merges_in_parts: ClassVar[bool] = False

    def defaults(self, task: Task) -> Mapping[str, Any]:
        """Defaults for `train.*` keys that suit this adapter on this task, e.g. `{"learning_rate": 1e-3}`."""
        return {}

    def positions_taken(self, options: Any, facts: Facts) -> int:
        """How many of the model's positions the adapter takes from a row's tokens: those it adds, and those that its
        keys and values stand at."""
        return self.added_positions(options, facts)

    def added_positions(self, options: Any, facts: Facts) -> int:
        """How many positions the adapted model has in front of the text (virtual tokens, not keys and values alone).

        Its logits have as many more: the core moves `logits_to_keep` and cuts them, and packs no rows.
        """
        return 0

    def keeps_rows_apart(self, options: Any, facts: Facts) -> bool:
        """`packs`, for an adapter with which it depends on these."""
        return self.packs

    def check(self, options: Any, facts: Facts) -> list[Problem]:
        """Everything that would go wrong with these options on this model; called before weights are loaded."""
        return []

    def notices(self, options: Any, facts: Facts) -> Sequence[str]:
        """What a user should know of these options on this model before a run, a sentence each: it is no problem."""
        return ()

    @abstractmethod
    def attach(self, model: nn.Module, options: Any, facts: Facts) -> Attached:
        """Freeze the base, add (or unfreeze) what trains, as float32. A second attach raises UsageError.

        Initialisation draws from the global generators of torch, Python or NumPy, which the core has seeded.
        """

    def prepare(self, model: nn.Module, losses: Iterator[Loss]) -> None:  # noqa: B027
        """Data-dependent initialisation (EVA, LoRA-GA), before the optimiser is made.

        Each of `losses` is of a batch of the first epoch: the model's forward pass runs when it is asked for, so that
        hooks see the data, and its `sum` can be differentiated. Take as few as are needed.
        """

    def param_groups(self, model: nn.Module, trainable: Iterable[str], learning_rate: float) -> list[dict[str, Any]]:
        """Optimiser groups of the adapter's own parameters (LoRA+ gives B a higher rate); default: one group."""
        parameters = dict(model.named_parameters())
        return [{"params": [parameters[n] for n in trainable], "lr": learning_rate}]

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Called after every optimiser step, when its gradients are gone (AdaLoRA drops ranks here)."""

    def training_state(self, model: nn.Module) -> Any:
        """What `after_step` or the forward pass goes by and no parameter or buffer holds: nested dicts and lists of
        tensors, numbers, text.

        It is stored in every checkpoint, and kept with the best evaluation's parameters: a resumed run, and one that
        delivers an earlier step, give it to `restore_training_state`.
        """
        return None

    def restore_training_state(self, model: nn.Module, state: Any) -> None:  # noqa: B027
        """Put back what `training_state` returned; tuples come back as lists."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter's tensors (safetensors) and its own config into `folder`; never the base's tensors."""

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which `model` answers as the base would (before/after comparisons). Default: cannot."""
        raise NotImplementedError(f"adapter {self.name!r} cannot be switched off")

    @property
    def switches_off(self) -> bool:
        """Whether the adapter has a `disabled` of its own."""
        return type(self).disabled is not Adapter.disabled

    @abstractmethod
    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Attach to the plain base `model` what `save` wrote, frozen and ready for inference; return the model."""

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the adapter into the base's weights and return a plain model, or raise NotMergeable(reason)."""
        raise NotMergeable(
            f"adapter {self.name!r} cannot be merged into the base's weights; deliver the adapter folder"
        )
