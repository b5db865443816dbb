"""What a planned run takes at its peak, on this machine or another: simulated tensors, and what lies outside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool.api.errors import DataError, one_line
from pefttool.api.events import Notice
from pefttool.api.values import Setting
from pefttool.config import sizes
from pefttool.config.emitter import Emitter
from pefttool.config.settings import TrainSettings
from pefttool.data import corpus
from pefttool.data.batches import Batches
from pefttool.data.corpus import CheckedRows
from pefttool.data.encoding import Encoded, rows_key
from pefttool.data.packed_rows import PackedRows
from pefttool.files.store import Store
from pefttool.forecast import overhead, simulate
from pefttool.forecast.overhead import Outside
from pefttool.forecast.recorder import Estimate
from pefttool.inference.predictor import FEATURES, without_features
from pefttool.models.pretrained import LocalPretrained
from pefttool.setup.plan import Plan
from pefttool.training.rehearsal import longest_batch
from pefttool.training.state import Rehearsed

#: A simulated peak this far from the measured one is a mistake in the simulation, unless both are so near that what
#: libraries allocate for themselves makes the difference.
SURPRISING, NEAR = 0.05, 16 << 20
TRAIN_KEYS = ("batch_size", "batch_tokens", "gradient_accumulation", "sequence_length", "gradient_checkpointing")


@dataclass(frozen=True)
class Forecast:
    """The largest micro-batch is `rows` rows of up to `tokens` tokens: with `measured_lengths` that of the plan's data.

    Where rows have the size that they have (`Task.truncates`), `tokens` says nothing, and is null in JSON.
    `memory` is what the device has, if that is known.
    """

    plan: Plan
    rows: int
    tokens: int
    estimate: Estimate
    outside: tuple[Outside, ...]
    memory: int | None = None
    measured_lengths: bool = False

    @property
    def total_bytes(self) -> int:
        return self.estimate.peak_bytes + sum(share.bytes for share in self.outside)

    @property
    def fits(self) -> bool | None:
        """In the device's memory; None where that is not known."""
        return None if self.memory is None else self.total_bytes <= self.memory

    def as_json(self) -> dict[str, Any]:
        return {
            **self.plan.as_json(),
            "parameters": self.plan.facts.parameters,
            "settings": self._settings(),
            "micro_batch": {
                "rows": self.rows,
                "tokens": self.tokens if self.plan.task.truncates else None,
                "of_this_data": self.measured_lengths,
            },
            "peak_bytes": self.estimate.peak_bytes,
            "parts": dict(self.estimate.parts),
            "phase": self.estimate.phase,
            "outside": [vars(share) for share in self.outside],
            "total_bytes": self.total_bytes,
            "memory_bytes": self.memory,
            "fits": self.fits,
        }

    def _settings(self) -> dict[str, Any]:
        """The recipe's keys that decide on memory, as `-o` takes them."""
        recipe = self.plan.recipe.as_document()
        keys = {"train": TRAIN_KEYS, "memory": ("offload", "stream")}
        return {f"{section}.{key}": recipe[section][key] for section, names in keys.items() for key in names}


@dataclass(frozen=True)
class Known:
    """Training rows that were encoded before, and the setting they were encoded for.

    `options` are the task's as the recipe has them, before the rows settled what stands on `auto`.
    """

    setting: Setting
    examples: Sequence[Mapping[str, Any]]
    options: Any = None

    def longest_batch(self, plan: Plan) -> list[Mapping[str, Any]] | None:
        """The micro-batch of the whole run that takes most; None where rows would be encoded otherwise."""
        train = plan.recipe.train
        if plan.recipe.task_options != self.options:
            return None
        if self.setting != plan.settled(self.setting.options).setting(self.setting.labels, self.setting.fitted):
            return None
        lengths = tuple(int(example["length"]) for example in self.examples)
        order = Batches(
            lengths, train.batch_size, train.gradient_accumulation, train.seed, train.batch_tokens, plan.may_pack
        )
        rows = longest_batch(order, order.total_steps(train.epochs, train.max_steps))
        return [self.examples[row] for row in rows]


def known(plan: Plan, store: Store, found: CheckedRows | None = None) -> Known | None:
    """The rows of a plan's data if a run has encoded and kept them; None if not, or if the data cannot be used.

    The data is read, unless all rows are `found` already.
    """
    if plan.recipe.data.train is None or not plan.recipe.data.cache:
        return None
    try:
        rows = corpus.load(plan.recipe, plan.registry, found=found)
    except DataError:
        return None  # a run says what is wrong with it
    setting = plan.settled(rows.options).setting(rows.labels, rows.fitted)
    processor = plan.task.load(LocalPretrained(plan.model.path, abstract=True, trusted=plan.trusted), setting).processor
    key = rows_key(plan.task, plan.registry, plan.model.path, processor, setting, rows.train)
    kept = store.load(key) if key is not None else None
    if kept is None:
        return None
    examples = [example for example in PackedRows(kept) if example["weight"] > 0]
    return Known(setting, examples, plan.recipe.task_options)


def make(plan: Plan, memory: int | None = None, data: Known | None = None) -> Forecast:
    """Simulate the largest micro-batch of this data, or without any the largest that the recipe allows.

    Raises UsageError where a task cannot be simulated without data.
    """
    chosen = data.longest_batch(plan) if data is not None else None
    if data is None or chosen is None:
        rows, tokens = largest(plan.recipe.train)
        estimate = simulate.peak(plan, plan.setting(), rows, tokens)
    else:
        rows, tokens = len(chosen), max(int(example["length"]) for example in chosen)
        estimate = simulate.peak_of(plan, data.setting, chosen)
    shares = overhead.shares(plan, estimate)
    return Forecast(plan, rows, tokens, estimate, shares, memory, measured_lengths=chosen is not None)


def compare(plan: Plan, setting: Setting, data: Encoded, emit: Emitter, rehearsed: Rehearsed | None) -> dict[str, int]:
    """What `pefttool plan` would have said of the longest batch, beside what was measured; a difference is said."""
    if rehearsed is None or rehearsed.peak_bytes is None:
        return {}
    chosen = [without_features(data.examples[i]) for i in rehearsed.rows]
    cached = FEATURES in data.examples[0]
    try:
        simulated = simulate.peak_of(plan, setting, chosen, settled=True).peak_bytes
    except Exception as error:  # a stranger's code on tensors without contents: no reason to lose a finished run
        emit(Notice(text=f"memory: this run cannot be simulated ({one_line(error)}), so it cannot be planned"))
        return {"measured_bytes": rehearsed.peak_bytes}
    measured = rehearsed.peak_bytes
    difference = (simulated - measured) / measured
    text = f"memory: {sizes.show(simulated)} of tensors simulated, {sizes.show(measured)} measured ({difference:+.1%})"
    if cached:
        emit(Notice(text=f"{text}: what is frozen does not run here as planned, its features are kept"))
    elif difference < 0 and rehearsed.evaluated_more:
        emit(Notice(text=f"{text}: the largest batch of held-out rows, which was evaluated, has more tokens"))
    elif abs(difference) > SURPRISING and abs(simulated - measured) > NEAR:
        emit(Notice(text=f"{text}: `pefttool plan` is wrong for this run; please report it", level="warning"))
    else:
        emit(Notice(text=text))
    return {"simulated_bytes": simulated, "measured_bytes": measured}


def largest(settings: TrainSettings) -> tuple[int, int]:
    """(rows, tokens of each): as long as rows may be, and as many as fit."""
    tokens = settings.sequence_length
    rows = settings.batch_size if settings.batch_tokens is None else max(1, settings.batch_tokens // tokens)
    return rows, tokens
