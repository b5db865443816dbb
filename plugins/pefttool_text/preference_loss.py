"""The losses of direct preference optimisation, and the log-probabilities that they compare.

For an answer y, g(y) = log p(y) - log p_base(y) is what it gained over the base, and beta g(y) the model's reward. With
h = g(chosen) - g(rejected) the losses of a pair are, in float32:

    sigmoid   -(1 - e) log s(beta h) - e log s(-beta h)     DPO, arXiv:2305.18290; e > 0 is its conservative form
    hinge     max(0, 1 - beta h)                            SLiC, arXiv:2305.10425
    ipo       (h / tokens - 1 / (2 beta))^2                 IPO, arXiv:2310.12036; log p are means over tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pefttool_text import packed
from pefttool_text.batching import IGNORE

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["sigmoid", "hinge", "ipo"]


def log_probabilities(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(summed log-probability, number) of the trained tokens of every sequence of the batch, both `[S]`; float32.

    The batch holds `[S, T]` ids, or S sequences packed into `[1, T]`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets = batch["labels"][:, 1:]
    # The output layer is the largest matmul of a small model: prompts and padding are skipped.
    kept = (targets != IGNORE).any(0).nonzero().squeeze(-1)
    logits = model(**packed.model_inputs(batch), logits_to_keep=kept, use_cache=False).logits
    targets = targets[:, kept]
    trained = targets != IGNORE
    log_p = -cross_entropy(logits[trained].float(), targets[trained], reduction="none")
    if packed.LENGTHS in batch:
        lengths = torch.tensor(batch[packed.LENGTHS], device=kept.device)
        owners = torch.arange(len(lengths), device=kept.device).repeat_interleave(lengths)
        sequence, count = owners[kept + 1], len(lengths)
    else:
        sequence, count = trained.nonzero()[:, 0], len(targets)
    sums = log_p.new_zeros(count).index_add(0, sequence, log_p)
    numbers = log_p.new_zeros(count).index_add(0, sequence, torch.ones_like(log_p))
    return sums, numbers


def pair_losses(policy: Tensor, reference: Tensor, kind: Kind, beta: float, label_smoothing: float) -> Tensor:
    """`[B]` losses from log-probabilities `[B, 2]`, the chosen answer's first; of `ipo` these are means over tokens."""
    from torch.nn.functional import logsigmoid

    ratios = policy - reference
    h = ratios[:, 0] - ratios[:, 1]
    if kind == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return (1 - beta * h).clamp(min=0)
    return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)
