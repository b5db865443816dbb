"""The frozen part of a model, below the first thing that trains: found by asking the model, and stood in for.

A pass over two rows of the run's own data shows in which order the model calls its modules, and where a gradient or a
draw of dropout first comes in. What lies before runs in evaluation mode, so it gives a row the same features at every
step. The last module of it that is enough to know is the frontier: with its outputs at hand, nothing below has to run.

Nothing is taken on trust. Before a frontier is used, the loss with what it gave is compared with the loss itself, bit
for bit, in training and in evaluation mode, and everything else below it gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pefttool.data.batches import two_short
from pefttool.data.encoding import Encoded
from pefttool.inference.predictor import FEATURES, Predictor
from pefttool.nn.compiling import eagerly
from pefttool.setup.precision import autocast
from pefttool.toolkit import peft_folder
from pefttool.toolkit.random_numbers import forked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.api.values import Loss
    from pefttool.setup.attach import Adapted
    from pefttool.setup.base import Base
    from pefttool.setup.plan import Plan

ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, eq=False)
class Frontier:
    """The last frozen module that has to be known.

    module     its outputs are the features; `name` is its place in the model
    field      which part of its output (a key or an index), or None if that is one tensor
    output     its output in the pass that asked, with NaN instead of numbers: the form of what stands in for it
    bypassed   modules that need not run then, with what stands in for their outputs: NaN
    like       the entry of a batch whose shape [B, T] is that of per-token features; None: one feature a row
    shape      of one token's or one row's features; `dtype` is theirs
    """

    module: nn.Module
    name: str
    field: str | int | None
    output: Any
    bypassed: tuple[tuple[nn.Module, Any], ...]
    like: str | None
    shape: tuple[int, ...]
    dtype: Any

    def of(self, output: Any) -> Tensor:
        """The features in what `module` returned."""
        features: Tensor = output if self.field is None else output[self.field]
        return features

    def lengths(self, examples: Sequence[Mapping[str, Any]]) -> list[int]:
        """How many tokens of features each of these examples has: a decoder's are those of the target alone."""
        return [_tokens(e, self.like) for e in examples]

    def rows(self, features: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Features of a batch -> of its rows: [T, ...] without padding, or [1, ...]."""
        if self.like is None:
            return [features[i : i + 1] for i in range(len(features))]
        if len(features) == len(lengths):
            return [row[:length] for row, length in zip(features, lengths, strict=True)]
        ends = list(accumulate(lengths))
        return [features[0, end - length : end] for end, length in zip(ends, lengths, strict=True)]  # packed

    def batch(self, rows: Sequence[Tensor], batch: Mapping[str, Any]) -> Tensor:
        """The inverse of `rows`, for these rows as `batch` has them; padding is zeros."""
        import torch

        if self.like is None:
            return torch.cat(list(rows))
        shape = batch[self.like].shape
        if len(rows) != shape[0]:
            return torch.cat(list(rows)).unsqueeze(0)
        padded = rows[0].new_zeros(*shape, *self.shape)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return padded

    @contextmanager
    def standing_in(self, features: Tensor) -> Iterator[None]:
        """Within, the model's forward pass starts from `features`, and what lies below does not run."""
        stand_ins = {module: output for module, output in self.bypassed}
        stand_ins[self.module] = _with(self.output, self.field, features)
        before = {module: vars(module).get("forward") for module in stand_ins}
        for module, output in stand_ins.items():
            vars(module)["forward"] = _returning(output)
        try:
            yield
        finally:
            for module, forward in before.items():
                del vars(module)["forward"]
                if forward is not None:
                    vars(module)["forward"] = forward


@dataclass(frozen=True)
class BatchFeatures:
    """What a batch carries as `FEATURES`: the frontier's outputs for its rows."""

    frontier: Frontier
    tensor: Tensor

    def to(self, device: Any) -> BatchFeatures:
        return replace(self, tensor=self.tensor.to(device))

    def standing_in(self) -> Any:
        return self.frontier.standing_in(self.tensor)


@dataclass(frozen=True)
class FrozenPart:
    """`eval_modules` are the modules that run in evaluation mode while the rest trains; `reason` is why there is no
    frontier, though whole blocks are frozen."""

    eval_modules: tuple[nn.Module, ...] = ()
    frontier: Frontier | None = None
    reason: str | None = None


def find(plan: Plan, base: Base, adapted: Adapted, data: Encoded) -> FrozenPart:
    """What is frozen below the first thing that trains, if that is a whole block or more."""
    model = adapted.model
    examples = two_short(data.examples)
    predictor = Predictor.of(plan, base, model)
    batch = predictor.batch(examples)

    def loss(**more: Any) -> Loss:
        with forked(plan.choice.device), autocast(plan.choice), eagerly(plan.recipe.train.compile):
            return predictor.loss({**batch, **more})

    modes = {module: module.training for module in model.modules()}
    try:
        still = stand_still(plan, adapted, loss)
        if not still:
            return FrozenPart()
        blocks = _blocks(plan, model)
        calls = _trace(plan, model, loss, blocks, drawing=True)
        names = {module: name for name, module in model.named_modules()}
        for frontier, features in _candidates(calls, blocks, names, batch, examples):
            rows = frontier.rows(features, frontier.lengths(examples))
            carried = BatchFeatures(frontier, frontier.batch(rows, batch))
            if _same(loss, carried):
                with predictor.inference():
                    if _same(loss, carried):
                        return FrozenPart(still, frontier)
        return FrozenPart(still, None, f"no one frozen module of {type(model).__name__} decides its loss")
    finally:
        for module, training in modes.items():
            module.training = training


def stand_still(plan: Plan, adapted: Adapted, loss: Callable[[], object]) -> tuple[nn.Module, ...]:
    """Put the model in training mode, but what is frozen below the first thing that trains: that is returned.

    `loss` is a forward pass over any batch.
    """
    model = adapted.model
    blocks = _blocks(plan, model)
    model.train()
    for module in adapted.eval_modules:
        module.eval()
    if not blocks or _trains(blocks[0]):
        return ()
    loss()  # what a task finds out about a model once, by calls of its own, it has found out now
    still = _before_training(_trace(plan, model, loss, blocks, drawing=False), blocks)
    for module in still:
        module.eval()
    return still


def _blocks(plan: Plan, model: nn.Module) -> tuple[nn.Module, ...]:
    """The repeated blocks of the base, first to last; the whole backbone where there are none."""
    prefix = peft_folder.root(model)
    blocks = tuple(model.get_submodule(f"{prefix}{name}") for name in plan.facts.layers)
    if blocks or not plan.adapter.frozen_backbone:
        return blocks
    try:
        return plan.task.split(model)[:1]
    except NotImplementedError:
        return ()


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _Enough(Exception):
    """Raised in the middle of a forward pass: the rest of it is not needed."""


@contextmanager
def stopping_after(module: nn.Module) -> Iterator[list[Any]]:
    """A forward pass within ends when `module` returns; what it returned is in the list."""
    outputs: list[Any] = []

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output)
        raise _Enough

    handle = module.register_forward_hook(leave)
    try:
        yield outputs
    except _Enough:
        pass
    finally:
        handle.remove()


@dataclass(frozen=True)
class _Call:
    """A module was entered, or returned `output`."""

    module: nn.Module
    entered: bool
    output: Any = None


def _trace(plan: Plan, model: nn.Module, loss: Any, blocks: Sequence[nn.Module], drawing: bool) -> list[_Call]:
    """The calls of one forward pass, up to the first module that trains, or (if `drawing`) draws."""
    # Tasks look whether their output layer has hooks; whatever it does, the model returns after it.
    prefix = peft_folder.root(model)
    outputs = {model.get_submodule(f"{prefix}{name}") for name in plan.facts.output_modules}
    heard = [module for module in model.modules() if module not in outputs]
    calls: list[_Call] = []
    training = {block for block in blocks if _trains(block)}

    def enter(module: nn.Module, inputs: Any) -> None:
        if module in training or (drawing and _draws(module)):
            raise _Enough
        calls.append(_Call(module, True))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if any(tensor.requires_grad for _, tensor in _tensors(output)):
            raise _Enough
        calls.append(_Call(module, False, output))

    handles = [module.register_forward_pre_hook(enter) for module in heard]
    handles += [module.register_forward_hook(leave) for module in heard]
    try:
        loss()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _draws(module: nn.Module) -> bool:
    from torch.nn.modules.dropout import _DropoutNd

    return isinstance(module, _DropoutNd) and module.training and module.p > 0


def _before_training(calls: Sequence[_Call], blocks: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The outermost modules in which nothing trains, of those entered before the last whole frozen block returned."""
    ends = [i for i, call in enumerate(calls) if not call.entered and call.module in blocks]
    if not ends:
        return ()
    return _outermost([call.module for call in calls[: ends[-1]] if call.entered and not _trains(call.module)])


def _outermost(modules: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Each once, in order, without those that lie in another."""
    inside = {part for module in modules for part in module.modules() if part is not module}
    return tuple(module for module in dict.fromkeys(modules) if module not in inside)


def _candidates(
    calls: Sequence[_Call],
    blocks: Sequence[nn.Module],
    names: Mapping[nn.Module, str],
    batch: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Frontier, Tensor]]:
    """(frontier, its features) of the modules that returned last, outermost first, then of the last stack of blocks
    that did (an encoder, where its decoder trains); small outputs first."""
    for last in _last_returns(calls, blocks):
        module, output = calls[last].module, calls[last].output
        begin = max(i for i, call in enumerate(calls[:last]) if call.entered and call.module is module)
        bypassed = _bypassed(calls[:begin], blocks)
        for field, features in sorted(_tensors(output), key=lambda pair: pair[1].numel()):
            alike = [n for n, t in batch.items() if _shape(t) == features.shape[:2]]
            if len({tuple(_tokens(e, n) for e in examples) for n in alike}) > 1:
                continue  # a source and a target of one width: whose tokens these are cannot be told
            like = next(iter(alike), None)
            per_token = like is not None and features.ndim > 2
            if features.is_floating_point() and (per_token or (features.ndim > 1 and len(features) == len(examples))):
                shape = tuple(features.shape[2 if per_token else 1 :])
                yield (
                    Frontier(
                        module,
                        names[module],
                        field,
                        _nan(output),
                        bypassed,
                        like if per_token else None,
                        shape,
                        features.dtype,
                    ),
                    features.detach(),
                )


def _last_returns(calls: Sequence[_Call], blocks: Sequence[nn.Module]) -> Iterator[int]:
    """Places in `calls` where a module returned: those after which nothing more was entered, and the last of blocks."""
    last = max((i for i, call in enumerate(calls) if not call.entered), default=0)
    while not calls[last].entered:
        yield last
        last -= 1
    held = {module for module in (call.module for call in calls) if any(part in blocks for part in module.modules())}
    stacks = [i for i, call in enumerate(calls[: max(last, 0)]) if not call.entered and call.module in held]
    yield from stacks[-1:]


def _tokens(example: Mapping[str, Any], name: str | None) -> int:
    """The length of what `encode` gave under this name, or of the whole row where that is no list."""
    own = example.get(name) if name is not None else None
    return len(own) if isinstance(own, list) else int(example["length"])


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _bypassed(calls: Sequence[_Call], blocks: Sequence[nn.Module]) -> tuple[tuple[nn.Module, Any], ...]:
    """The outermost modules that returned and are, or hold, blocks: what is left to run is cheap."""
    returned = {c.module: c.output for c in calls if not c.entered and any(m in blocks for m in c.module.modules())}
    return tuple((module, _nan(returned[module])) for module in _outermost(list(returned)))


def _same(loss: Any, carried: BatchFeatures) -> bool:
    """Whether the loss from features is the loss, bit for bit, dropout's draws included."""
    whole = loss().sum.detach()
    try:
        return bool(loss(**{FEATURES: carried}).sum.detach().equal(whole))
    except ERRORS:
        return False


def _tensors(output: Any) -> list[tuple[str | int | None, Tensor]]:
    """(field, tensor) of a module's output: itself, or what a tuple or a mapping holds."""
    import torch

    if isinstance(output, torch.Tensor):
        return [(None, output)]
    if isinstance(output, Mapping):
        return [(name, value) for name, value in output.items() if isinstance(value, torch.Tensor)]
    if isinstance(output, tuple | list):
        return [(i, value) for i, value in enumerate(output) if isinstance(value, torch.Tensor)]
    return []


def _nan(output: Any) -> Any:
    """An output of the same form, its numbers replaced by NaN (integers by -1); it takes no memory."""
    form = output
    for field, tensor in _tensors(output):
        hollow = tensor.detach().new_full((), float("nan") if tensor.is_floating_point() else -1).expand(tensor.shape)
        form = _with(form, field, hollow)
    return form


def _with(output: Any, field: str | int | None, tensor: Tensor) -> Any:
    """The output with another tensor in this field."""
    if field is None:
        return tensor
    if isinstance(output, Mapping):
        made: Any = type(output)
        return made(**{**output, str(field): tensor})
    items = list(output)
    items[int(field)] = tensor
    return tuple(items) if isinstance(output, tuple) else items


def _returning(output: Any) -> Any:
    return lambda *arguments, **named: output
