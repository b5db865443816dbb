"""Prefix tuning: trained keys and values before every layer's own, float32, on a frozen base.

Through peft where it can, and its files are peft's; else inside the attention function (`through_attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pefttool import Adapter, Attached, Facts, NotMergeable, Problem, Task
from pefttool.toolkit import attachment, peft_folder
from pefttool_prefix import through_peft
from pefttool_prefix.options import PEFT, PrefixOptions, chosen, refused

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

#: Measured on SmolLM2-135M, 30 steps of chat rows: held-out loss 2.66 -> 2.05 (3e-3), 1.74 (1e-2), 1.48 (3e-2).
GENERATIVE = {"learning_rate": 3e-2}
#: peft's usual rates leave a classifier at chance: the prefix needs a high one, the head a lower one.
OTHER = {"learning_rate": 3e-2, "head_learning_rate": 5e-3}
#: Held-out loss of Whisper tiny.en, 8 telephone prompts, before the first step: 1.88 without a prefix, 5.53 with normal
#: noise, 4.33 with keys and values of the prompts themselves, 2.04 with a tenth of the noise.
SMALL = 0.1


class PrefixAdapter(Adapter):
    """Trained keys and values before every layer's own (prefix tuning, arXiv:2101.00190)."""

    name = "prefix"
    Options = PrefixOptions

    def keeps_rows_apart(self, options: PrefixOptions, facts: Facts) -> bool:
        return chosen(options, facts) != PEFT

    def positions_taken(self, options: PrefixOptions, facts: Facts) -> int:
        stands_before = chosen(options, facts) == PEFT or facts.counts_positions
        return options.num_virtual_tokens if stands_before and facts.key_value_cache else 0

    def defaults(self, task: Task) -> Mapping[str, Any]:
        return GENERATIVE if task.generative else OTHER

    def check(self, options: PrefixOptions, facts: Facts) -> list[Problem]:
        return refused(options, facts)

    def attach(self, model: nn.Module, options: PrefixOptions, facts: Facts) -> Attached:
        through = chosen(options, facts)
        if through == PEFT:
            through_peft.require_fitting(model, facts)
        attachment.claim(model, self.name)
        init = _init(options, facts)
        start = None
        if init == "activations" and not facts.abstract:
            from pefttool_prefix.initialise import from_activations

            start = from_activations(model, options.num_virtual_tokens)
        scale = SMALL if init == "small" else 1.0
        if through == PEFT:
            return through_peft.attach(model, options.num_virtual_tokens, start, scale, facts)
        from pefttool_prefix import through_attention

        return through_attention.attach(model, options.num_virtual_tokens, start, scale, facts)

    def save(self, model: nn.Module, folder: Path) -> None:
        if hasattr(model, "peft_config"):
            peft_folder.save(model, folder)
            return
        from pefttool_prefix import through_attention

        through_attention.save(model, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        attachment.claim(model, self.name)
        if (folder / peft_folder.CONFIG).is_file():
            return peft_folder.load(model, folder, task_wrapper=True, method="PREFIX_TUNING")
        from pefttool_prefix import through_attention

        return through_attention.load(model, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        raise NotMergeable(
            "adapter 'prefix' cannot be merged: it adds keys and values, which no weight of the base can hold;"
            " deliver the adapter folder"
        )

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        if hasattr(model, "peft_config"):
            return through_peft.disabled(model)
        from pefttool_prefix import through_attention

        return through_attention.disabled(model)


def _init(options: PrefixOptions, facts: Facts) -> str:
    """How the prefix starts: a decoder is thrown off by noise, and so is what listens or reads for one."""
    if options.init != "auto":
        return options.init
    if facts.peft_task_type == "CAUSAL_LM":
        return "activations"
    return "random" if chosen(options, facts) == PEFT else "small"
