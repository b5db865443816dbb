"""SYNTHETIC: short advertising texts for a product and a segment of customers, from templates, and which suits whom.

Nobody wrote these texts for anybody. They show a model that is given a segment and a product, and answers in one house
style: a salutation that suits the segment, a reason that does, and one closing line.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from pefttool_examples.datasets import write_rows

PRODUCTS = (
    *("running shoes", "a rain jacket", "a coffee grinder", "noise-cancelling headphones", "a desk lamp", "a bicycle"),
    *("an electric kettle", "a hiking backpack", "a yoga mat", "a fountain pen", "a garden hose", "a winter coat"),
    *("a cast-iron pan", "a travel mug", "a chess set", "a bookshelf", "a cordless drill", "a picnic blanket"),
)
#: Segment: how its customers are addressed, what counts for them, and how a message to them ends.
SEGMENTS = {
    "students": ("Hey!", "it is {price} this week, and you can pay in three parts", "Show your student card and save."),
    "new parents": ("Hello,", "it saves you minutes on a busy morning", "Delivered to your door, returned for free."),
    "retired customers": ("Dear customer,", "it is simple to use and lasts for years", "Call us: we are glad to help."),
    "frequent travellers": ("Hi there,", "it is light and fits into your hand luggage", "Ready for your next trip."),
    "bargain hunters": ("Good news!", "it is now {price} instead of {before}", "Only while stocks last."),
    "loyal customers": ("Welcome back,", "you liked what you bought before, and this goes with it", "Thank you."),
}
OPENINGS = ("{greeting} How about {product}? For you, {reason}. {closing}", "{greeting} We thought of you: {product}, "
            "because {reason}. {closing}")  # fmt: skip
EVAL_ROWS = 36


def make_messages(folder: Path) -> None:
    """`instruction` and `output`, in a fixed random order; held-out pairs of product and segment are not trained on."""
    draws = random.Random(0)
    rows = [
        {"instruction": asked(product, segment), "output": message(product, segment, draws)}
        for product, segment in itertools.product(PRODUCTS, SEGMENTS)
    ]
    draws.shuffle(rows)
    write_rows(folder / "eval.jsonl", rows[:EVAL_ROWS])
    write_rows(folder / "train.jsonl", rows[EVAL_ROWS:])


def make_preferences(folder: Path) -> None:
    """`prompt`, `chosen` and `rejected`: the message for this segment is preferred to the one for another.

    Every segment's message is rejected as often as it is chosen, so that none is better by itself. No product of a
    held-out row is in a training row.
    """
    draws = random.Random(1)
    segments, rows = list(SEGMENTS), []
    for number, product in enumerate(draws.sample(PRODUCTS, len(PRODUCTS))):
        away = 1 + number % (len(segments) - 1)
        texts = {segment: message(product, segment, draws) for segment in segments}
        rows += [
            {"prompt": asked(product, segment), "chosen": texts[segment], "rejected": texts[other]}
            for segment, other in zip(segments, [*segments[away:], *segments[:away]], strict=True)
        ]
    held_out = EVAL_ROWS // len(segments) * len(segments)
    write_rows(folder / "eval.jsonl", rows[:held_out])
    write_rows(folder / "train.jsonl", rows[held_out:])


def asked(product: str, segment: str) -> str:
    return f"Write a short message that offers {product} to {segment}."


def message(product: str, segment: str, draws: random.Random) -> str:
    """What the house would write about this product to this segment."""
    greeting, reason, closing = SEGMENTS[segment]
    price = draws.randrange(15, 90)
    reason = reason.format(price=f"{price} euros", before=f"{price + draws.randrange(5, 40)}")
    return draws.choice(OPENINGS).format(greeting=greeting, product=product, reason=reason, closing=closing)
