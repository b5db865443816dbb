"""What the frozen part of a model makes of the rows: computed once, kept on disk, the same for every epoch and run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pefttool.api.events import Progress
from pefttool.data.batches import Batches
from pefttool.data.encoding import Encoded, Examples
from pefttool.files import fingerprint
from pefttool.files.store import Unwritable
from pefttool.inference import frozen
from pefttool.inference.frozen import BatchFeatures, Frontier
from pefttool.inference.out_of_memory import in_batches
from pefttool.inference.predictor import FEATURES, Predictor
from pefttool.nn.compiling import eagerly

if TYPE_CHECKING:
    from torch import Tensor

    from pefttool.files.store import Partial, Put, Store
    from pefttool.setup.prepared import Prepared, Session
from pefttool.setup.plan import Plan

#: Tokens of a batch (padding counts) while features are computed. Nothing is kept for a backward pass.
TOKENS = 4096
#: Bytes of features that one part of the data may have; beyond, the frozen part runs at every step.
LIMIT = 4 << 30
NAME = "features"


@dataclass(eq=False)
class Kept:
    """The features of a list of rows, one behind another in `tensor`: row `i` has `[starts[i] : starts[i + 1]]`.

    `making` fills in those that are not there yet; None, once all are.
    """

    frontier: Frontier
    starts: Sequence[int]
    tensor: Tensor
    making: Making | None = None

    def at_hand(self, rows: Sequence[int]) -> bool:
        return self.making is None or self.making.has(rows)

    def need(self, rows: Sequence[int]) -> bool:
        """Compute what is missing of these rows; False where the disk failed, and nothing can be kept any longer."""
        if self.making is not None and self.making.fill(rows):
            self.making = None
        return self.making is None or not self.making.failed

    def batch(self, rows: Sequence[int], batch: Any) -> BatchFeatures | None:
        """Those of `rows`, in the form of the frontier's output for `batch`."""
        if not self.need(rows):
            return None
        parts = [self.tensor[self.starts[i] : self.starts[i + 1]] for i in rows]
        return BatchFeatures(self.frontier, self.frontier.batch(parts, batch))


@dataclass(eq=False)
class Making:
    """Features on their way into a file of the store, chunk by chunk: a chunk when one of its rows is first asked for.

    So training starts after the first chunk and not after the last. Which rows are a chunk does not depend on who
    asks when: rows of similar length, since what is computed together differs in rounding.
    """

    chunks: Sequence[list[int]]
    compute: Callable[[list[int], Put], None]
    partial: Partial
    store: Store
    tell: Callable[[int, int], None]
    missing: set[int] = field(init=False)
    failed: bool = False

    def __post_init__(self) -> None:
        self.missing = set(range(len(self.chunks)))
        self._chunk = {row: number for number, rows in enumerate(self.chunks) for row in rows}

    def has(self, rows: Sequence[int]) -> bool:
        return self.missing.isdisjoint(self._chunk[row] for row in rows)

    def fill(self, rows: Sequence[int]) -> bool:
        """Compute the chunks of these rows; whether that was the last of them, and the store has the whole file."""
        try:
            for number in sorted(self.missing & {self._chunk[row] for row in rows}):
                if self.failed:
                    break
                self.compute(self.chunks[number], self.partial.put)
                self.missing.remove(number)
                done = sum(len(chunk) for i, chunk in enumerate(self.chunks) if i not in self.missing)
                self.tell(done, len(self._chunk))
                if not self.missing:
                    self.partial.finish()
        except Unwritable as error:
            self.store.complain(error)
            self.partial.discard()
            self.failed = True
        return not self.missing


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """What an example carries as FEATURES: where its features are."""

    kept: Kept
    row: int


def settle(prepared: Prepared, store: Store | None, session: Session) -> Prepared:
    """With the modules that stand still while the rest trains, and the rows with features.

    There are none where nothing would be gained, or where they cannot be trusted: then a notice says why.
    """
    plan, base, data = prepared.plan, prepared.base, prepared.data
    found = frozen.find(plan, base, prepared.adapted, data.train)
    adapted = replace(prepared.adapted, eval_modules=(*prepared.adapted.eval_modules, *found.eval_modules))
    prepared = replace(prepared, adapted=adapted)
    if store is None or not found.eval_modules:
        return prepared
    if plan.task.varies(base.setting.options):
        session.say("features are not cached: the task changes its rows in every epoch")
        return prepared
    if found.frontier is None:
        session.say(f"features are not cached: {found.reason}")
        return prepared
    maker = _Maker(prepared, found.frontier, store, session)
    passes = _passes(plan, data.train, session.ranks)
    training, evaluation = (maker.kept(part, worth=passes >= 1) for part in (data.train, data.held_out))
    if training is None or evaluation is None:
        return prepared
    return replace(prepared, data=Examples(_carrying(data.train, training), _carrying(data.held_out, evaluation)))


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
    prepared: Prepared
    frontier: Frontier
    store: Store
    session: Session

    @property
    def at_once(self) -> bool:
        """Not chunk by chunk: ranks would wait for each other's chunks."""
        return self.session.ranks > 1

    def kept(self, data: Encoded, worth: bool) -> Kept | None:
        """The features of these rows, from the store or (where it is `worth` it) computed; None without."""
        import torch

        per_token = self.frontier.like is not None
        starts = (0, *accumulate(self.frontier.lengths(data.examples) if per_token else [1] * len(data.examples)))
        shape = (starts[-1], *self.frontier.shape)
        size = torch.Size(shape).numel() * self.frontier.dtype.itemsize
        if size > LIMIT:
            text = f"{size >> 20} MiB for {len(data.examples)} rows, and the limit is {LIMIT >> 20} MiB"
            self.session.say(f"features are not cached: {text}; the frozen part runs at every step")
            return None
        try:
            key = self.key(data, shape)
        except (fingerprint.Unknowable, OSError) as error:
            self.session.say(f"features are not cached: {error}; the frozen part runs at every step")
            return None
        if not self.at_once:
            return self._stored(key, starts) or (self._made(key, data, starts, shape) if worth else None)
        with self.store.alone(key):  # what one rank makes, the others then find
            kept = self._stored(key, starts) or (self._made(key, data, starts, shape) if worth else None)
            return kept if kept is not None and kept.need(range(len(data.examples))) else None

    def _stored(self, key: str, starts: Sequence[int]) -> Kept | None:
        tensors = self.store.load(key)
        return None if tensors is None else Kept(self.frontier, starts, tensors[NAME])

    def _made(self, key: str, data: Encoded, starts: Sequence[int], shape: tuple[int, ...]) -> Kept | None:
        partial = self.store.begin(key, {NAME: (self.frontier.dtype, shape)})
        if partial is None:
            return None
        making = Making(
            self._chunks(data),
            lambda rows, put: self._compute(data, starts, rows, put),
            partial,
            self.store,
            lambda done, total: self.session.emit(Progress(what="features", done=done, total=total)),
        )
        return Kept(self.frontier, starts, partial.tensor(NAME), making)

    def _chunks(self, data: Encoded) -> list[list[int]]:
        """The rows that the frozen part sees together: those of similar length."""
        lengths = tuple(int(e["length"]) for e in data.examples)
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        return Batches(lengths, 1, 1, 0, max(TOKENS, lengths[order[0]]), self.prepared.base.setting.packing).fill(order)

    def key(self, data: Encoded, shape: tuple[int, ...]) -> str:
        """A hash over everything that the features depend on. Raises Unknowable, or OSError, where that has none."""
        if data.key is None:
            raise fingerprint.Unknowable("what the rows depend on is not known")
        model, plan = self.prepared.adapted.model, self.prepared.plan
        trained = set(self.prepared.adapted.parameters())
        config: Any = getattr(model, "config", None)
        described = config.to_dict() if hasattr(config, "to_dict") else {}
        plugins = [plan.task, plan.adapter, *([plan.quantization.quantizer] if plan.quantization else [])]
        state = {**model.state_dict(), **dict(model.named_buffers())}
        return fingerprint.key(
            what="features",
            rows=data.key,
            weights=fingerprint.weight_files(self.prepared.base.local.path),
            state=fingerprint.tensors({n: t for n, t in state.items() if n not in trained}),
            model=[repr(model), {k: repr(v) for k, v in described.items() if k != "_name_or_path"}],
            attention=str(getattr(config, "_attn_implementation", None)),
            frontier=[self.frontier.name, str(self.frontier.field), str(self.frontier.like), shape],
            choice=[*_arithmetic(plan), str(self.frontier.dtype)],
            quantizer=plan.quantization.described() if plan.quantization else None,
            setting={**asdict(self.prepared.base.setting), "options": _dump(self.prepared.base.setting.options)},
            code=fingerprint.code([*plugins, *model.modules()]),
        )

    def _compute(self, data: Encoded, starts: Sequence[int], chunk: list[int], put: Put) -> None:
        """Run the frozen part over these rows, in halves where memory does not suffice."""
        predictor = Predictor.of(self.prepared.plan, self.prepared.base, self.prepared.adapted.model)

        def features(rows: Sequence[int]) -> list[Tensor]:
            examples = [data.examples[i] for i in rows]
            return self.frontier.rows(self._output(predictor, examples), self.frontier.lengths(examples))

        with predictor.inference(), eagerly(self.prepared.plan.recipe.train.compile):
            for rows, made in in_batches(predictor, data.examples, [chunk], features, "the frozen part"):
                for i, tensor in zip(rows, made, strict=True):
                    assert len(tensor) == starts[i + 1] - starts[i], "the model was called with other rows"
                    put(NAME, starts[i], tensor)

    def _output(self, predictor: Predictor, examples: Sequence[Mapping[str, Any]]) -> Tensor:
        """The frontier's output; everything after it does not run."""
        with frozen.stopping_after(self.frontier.module) as outputs:
            predictor.loss(predictor.batch(examples))
        return self.frontier.of(outputs[0])


def _arithmetic(plan: Plan) -> list[str]:
    import torch

    choice = plan.choice
    kind = torch.device(choice.device).type
    card = torch.cuda.get_device_name(choice.device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [kind, card, choice.dtype, str(choice.autocast), torch.get_float32_matmul_precision()]


def _dump(options: Any) -> Any:
    return options.model_dump(mode="json") if hasattr(options, "model_dump") else None
