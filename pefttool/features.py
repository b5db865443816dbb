"""What the frozen part of a model makes of the rows: computed once, kept on disk, the same for every epoch and run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pefttool import fingerprint, frozen
from pefttool.batches import FEATURES, Batches, Encoded, to_device
from pefttool.compiling import eagerly
from pefttool.evaluate import inference
from pefttool.events import Notice, Progress
from pefttool.frozen import BatchFeatures, Frontier
from pefttool.recovery import halves, out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from pefttool.attach import Adapted
    from pefttool.base import Base
    from pefttool.observers import Emitter
    from pefttool.plan import Plan
    from pefttool.store import Put, Store

#: Tokens of a batch (padding counts) while features are computed. Nothing is kept for a backward pass.
TOKENS = 4096
#: Bytes of features that one part of the data may have; beyond, the frozen part runs at every step.
LIMIT = 4 << 30
NAME = "features"


@dataclass(frozen=True, eq=False)
class Kept:
    """The features of a list of rows, one behind another: row `i` has `[starts[i] : starts[i + 1]]`.

    They are read, or computed, when they are first asked for, and `at_hand` from then on; None where nothing can be
    kept.
    """

    frontier: Frontier
    starts: tuple[int, ...]
    source: Callable[[], Tensor | None]

    @cached_property
    def tensor(self) -> Tensor | None:
        return self.source()

    @property
    def at_hand(self) -> bool:
        return "tensor" in vars(self)

    def batch(self, rows: Sequence[int], batch: Any) -> BatchFeatures | None:
        """Those of `rows`, in the form of the frontier's output for `batch`."""
        if self.tensor is None:
            return None
        parts = [self.tensor[self.starts[i] : self.starts[i + 1]] for i in rows]
        return BatchFeatures(self.frontier, self.frontier.batch(parts, batch))


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """What an example carries as FEATURES: where its features are."""

    kept: Kept
    row: int


def settle(
    plan: Plan,
    base: Base,
    adapted: Adapted,
    data: Encoded,
    held_out: Encoded,
    store: Store | None,
    emit: Emitter,
    ranks: int = 1,
) -> tuple[Adapted, Encoded, Encoded]:
    """(adapted, data, held-out): with the modules that stand still while the rest trains, and with features.

    There are none where nothing would be gained, or where they cannot be trusted: then a notice says why.
    """
    found = frozen.find(plan, base, adapted, data)
    adapted = replace(adapted, still=(*adapted.still, *found.still))
    if store is None or not found.still:
        return adapted, data, held_out
    if plan.task.varies(base.setting.options):
        emit(Notice(text="features are not cached: the task changes its rows in every epoch"))
        return adapted, data, held_out
    if found.frontier is None:
        emit(Notice(text=f"features are not cached: {found.reason}"))
        return adapted, data, held_out
    maker = _Maker(plan, base, adapted, found.frontier, store, emit)
    passes = _passes(plan, data, ranks)
    training, evaluation = (maker.kept(part, worth=passes >= 1) for part in (data, held_out))
    if training is None or evaluation is None or training.tensor is None:
        return adapted, data, held_out  # those of held-out rows are made at the first evaluation
    return adapted, _carrying(data, training), _carrying(held_out, evaluation)


def _carrying(data: Encoded, kept: Kept) -> Encoded:
    examples = (ChainMap({FEATURES: RowFeatures(kept, i)}, e) for i, e in enumerate(data.examples))  # type: ignore[arg-type]
    return replace(data, examples=tuple(examples))


def _passes(plan: Plan, data: Encoded, ranks: int) -> float:
    """About how often training will go over the rows."""
    settings = plan.recipe.train
    if settings.max_steps is None:
        return settings.epochs
    forwards = settings.max_steps * settings.gradient_accumulation * ranks
    if settings.batch_tokens is not None:
        return forwards * settings.batch_tokens / data.tokens
    return forwards * settings.batch_size / len(data.examples)


@dataclass(frozen=True)
class _Maker:
    plan: Plan
    base: Base
    adapted: Adapted
    frontier: Frontier
    store: Store
    emit: Emitter

    def kept(self, data: Encoded, worth: bool) -> Kept | None:
        """The features of these rows, from the store or (where it is `worth` it) computed now; None without."""
        import torch

        per_token = self.frontier.like is not None
        starts = (0, *accumulate(self.frontier.lengths(data.examples) if per_token else [1] * len(data.examples)))
        shape = (starts[-1], *self.frontier.shape)
        size = torch.Size(shape).numel() * self.frontier.dtype.itemsize
        if size > LIMIT:
            text = f"{size >> 20} MiB for {len(data.examples)} rows, and the limit is {LIMIT >> 20} MiB"
            self.emit(Notice(text=f"features are not cached: {text}; the frozen part runs at every step"))
            return None
        try:
            key = self.key(data, shape)
        except (fingerprint.Unknowable, OSError) as error:
            self.emit(Notice(text=f"features are not cached: {error}; the frozen part runs at every step"))
            return None
        kept = Kept(self.frontier, starts, lambda: self._stored_or_made(key, data, starts, shape))
        tensors = self.store.load(key)
        if tensors is not None:
            vars(kept)["tensor"] = tensors[NAME]
        return kept if kept.at_hand or worth else None

    def _stored_or_made(self, key: str, data: Encoded, starts: Sequence[int], shape: tuple[int, ...]) -> Tensor | None:
        with self.store.alone(key):
            tensors = self.store.load(key)  # another process may have made them by now
            if tensors is None:
                spec = {NAME: (self.frontier.dtype, shape)}
                self.store.make(key, spec, lambda put: self._compute(data, starts, put))
                tensors = self.store.load(key)
        return None if tensors is None else tensors[NAME]

    def key(self, data: Encoded, shape: tuple[int, ...]) -> str:
        """A hash over everything that the features depend on. Raises Unknowable, or OSError, where that has none."""
        if data.key is None:
            raise fingerprint.Unknowable("what the rows depend on is not known")
        model, plan = self.adapted.model, self.plan
        trained = set(self.adapted.parameters())
        config: Any = getattr(model, "config", None)
        described = config.to_dict() if hasattr(config, "to_dict") else {}
        plugins = [plan.task, plan.adapter, *([plan.quantizer] if plan.quantizer else [])]
        state = {**model.state_dict(), **dict(model.named_buffers())}
        return fingerprint.key(
            what="features",
            rows=data.key,
            weights=fingerprint.weight_files(self.base.local.path),
            state=fingerprint.tensors({n: t for n, t in state.items() if n not in trained}),
            model=[repr(model), {k: repr(v) for k, v in described.items() if k != "_name_or_path"}],
            attention=str(getattr(config, "_attn_implementation", None)),
            frontier=[self.frontier.name, str(self.frontier.field), str(self.frontier.like), shape],
            choice=[*_arithmetic(plan), str(self.frontier.dtype)],
            quantizer=[plan.quantizer.name, _dump(plan.quantizer.Options())] if plan.quantizer else None,
            setting={**asdict(self.base.setting), "options": _dump(self.base.setting.options)},
            code=fingerprint.code([*plugins, *model.modules()]),
        )

    def _compute(self, data: Encoded, starts: Sequence[int], put: Put) -> None:
        """Run the frozen part over all rows, those of similar length together, longest first."""
        plan, base, model = self.plan, self.base, self.adapted.model
        lengths, own = tuple(int(e["length"]) for e in data.examples), self.frontier.lengths(data.examples)
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        tokens = max(TOKENS, lengths[order[0]])
        waiting = Batches(lengths, 1, 1, 0, tokens, base.setting.packing).fill(order)[::-1]
        done = 0
        with inference(model, plan.choice), eagerly(plan.recipe.train.compile):
            while waiting:
                rows = waiting.pop()
                batch = plan.task.collate([data.examples[i] for i in rows], base.processor, base.setting)
                try:
                    output = self._output(to_device(batch, plan.choice.device))
                except (RuntimeError, MemoryError) as error:
                    if len(rows) < 2 or not out_of_memory(error):
                        raise
                    waiting = [half for later in (*waiting, rows) for half in reversed(halves(later, lengths))]
                    continue
                for i, features in zip(rows, self.frontier.rows(output, [own[i] for i in rows]), strict=True):
                    assert len(features) == starts[i + 1] - starts[i], "the model was called with other rows"
                    put(NAME, starts[i], features)
                done += len(rows)
                self.emit(Progress(what="features", done=done, total=len(lengths)))

    def _output(self, batch: Any) -> Tensor:
        """The frontier's output; what comes after it does not run."""
        model, frontier = self.adapted.model, self.frontier
        with frozen.stopping_after(frontier.module) as outputs:
            self.plan.task.loss(model, batch, self.base.setting)
        return frontier.of(outputs[0])


def _arithmetic(plan: Plan) -> list[str]:
    import torch

    choice = plan.choice
    kind = torch.device(choice.device).type
    card = torch.cuda.get_device_name(choice.device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [kind, card, choice.dtype, str(choice.autocast), torch.get_float32_matmul_precision()]


def _dump(options: Any) -> Any:
    return options.model_dump(mode="json") if hasattr(options, "model_dump") else None
