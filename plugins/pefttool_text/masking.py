"""Which tokens of a text are hidden from a masked language model, and what stands there instead.

The choice depends on the tokens and the run's seed alone: not on the epoch, the batch, the step or the generator that
training draws from. So a run that is resumed goes on exactly, every evaluation asks the same, the contract's check that
company in a batch changes nothing holds, and encoded rows can be kept. The price: a text is masked in one way in all
epochs of a run; another `train.seed` masks it in another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pefttool_text.batching import IGNORE

#: Of the chosen tokens, as in BERT (arXiv:1810.04805): these many become the mask, and these many a random token, so
#: that the model cannot rely on seeing the mask where it is asked. The others stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masked:
    """`input_ids` as the model sees them; `labels` are the hidden tokens where it is asked, IGNORE elsewhere."""

    input_ids: list[int]
    labels: list[int]


def mask(
    ids: Sequence[int], maskable: Sequence[int], fraction: float, mask_id: int, vocabulary: int, seed: int
) -> Masked:
    """Hide `fraction` of the positions `maskable` of `ids`: at least one, where there is one.

    Random tokens are below `vocabulary`.
    """
    draws = random.Random(f"{seed} {' '.join(map(str, ids))}")
    count = min(len(maskable), max(1, round(len(maskable) * fraction)))
    given, labels = list(ids), [IGNORE] * len(ids)
    for position in sorted(draws.sample(list(maskable), count)):
        labels[position] = ids[position]
        draw = draws.random()
        if draw < MASKED:
            given[position] = mask_id
        elif draw < MASKED + RANDOM:
            given[position] = draws.randrange(vocabulary)
    return Masked(given, labels)
