"""What an adapter plugin implements: how a pretrained model is wrapped, saved, loaded and merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pefttool.api.errors import NotMergeable
from pefttool.api.facts import Facts
from pefttool.api.options import Options
from pefttool.api.task import Task
from pefttool.api.values import Attached, Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Adapter(ABC):
    """A way of making a frozen pretrained model trainable. One object serves all runs: keep no state in it."""

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

    def keeps_rows_apart(self, options: Any, facts: Facts) -> bool:
        """`packs`, for an adapter with which it depends on these."""
        return self.packs

    def added_positions(self, options: Any, facts: Facts) -> int:
        """How many positions the adapted model has in front of the text (virtual tokens, not keys and values alone).

        Its logits have as many more: the core moves `logits_to_keep` and cuts them, and packs no rows.
        """
        return 0

    def positions_taken(self, options: Any, facts: Facts) -> int:
        """How many of the model's positions the adapter takes from a row's tokens: those it adds, and those that its
        keys and values stand at."""
        return self.added_positions(options, facts)

    def defaults(self, task: Task) -> Mapping[str, Any]:
        """Defaults for `train.*` keys that suit this adapter on this task, e.g. `{"learning_rate": 1e-3}`."""
        return {}

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

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter's tensors (safetensors) and its own config into `folder`; never the base's tensors."""

    @abstractmethod
    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Attach to the plain base `model` what `save` wrote, frozen and ready for inference; return the model."""

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the adapter into the base's weights and return a plain model, or raise NotMergeable(reason)."""
        raise NotMergeable(
            f"adapter {self.name!r} cannot be merged into the base's weights; deliver the adapter folder"
        )

    def param_groups(self, model: nn.Module, trainable: Iterable[str], learning_rate: float) -> list[dict[str, Any]]:
        """Optimiser groups of the adapter's own parameters (LoRA+ gives B a higher rate); default: one group."""
        parameters = dict(model.named_parameters())
        return [{"params": [parameters[n] for n in trainable], "lr": learning_rate}]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """An optimiser of the adapter's own (GaLore), or None for the one that the recipe names."""
        return None

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:  # noqa: B027
        """Data-dependent initialisation (EVA, LoRA-GA) from a few training batches, before the optimiser is made."""

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Called after every optimiser step (AdaLoRA reallocates ranks here)."""

    def training_state(self, model: nn.Module) -> Any:
        """What `after_step` or the forward pass goes by and no parameter or buffer holds: nested dicts and lists of
        tensors, numbers, text.

        It is stored in every checkpoint, and kept with the best evaluation's parameters: a resumed run, and one that
        delivers an earlier step, give it to `restore_training_state`.
        """
        return None

    def restore_training_state(self, model: nn.Module, state: Any) -> None:  # noqa: B027
        """Put back what `training_state` returned; tuples come back as lists."""

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which `model` answers as the base would (before/after comparisons). Default: cannot."""
        raise NotImplementedError(f"adapter {self.name!r} cannot be switched off")

    @property
    def switches_off(self) -> bool:
        """Whether the adapter has a `disabled` of its own."""
        return type(self).disabled is not Adapter.disabled
