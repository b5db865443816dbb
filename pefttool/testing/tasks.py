"""The contract of a task, on a tiny model and on good rows of its own."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import DataError
from pefttool.api.facts import Facts
from pefttool.api.task import Task
from pefttool.api.values import Row, Setting
from pefttool.data import unused_columns
from pefttool.data.encoding import encode
from pefttool.inference import reference_model
from pefttool.inference.predictor import Predictor, inference
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.bench import CPU, TOLERANCE, ContractViolation, require
from pefttool.testing.models import model_folder
from pefttool.testing.recorded import Recorded
from pefttool.testing.tensors import close, same_gradient

if TYPE_CHECKING:
    from torch import Tensor, nn

Values = Mapping[str, Any]


def check_task(
    task: Task, rows: Sequence[Values], kind: str | None = None, others: Iterable[Sequence[Values]] = ()
) -> None:
    """Run every check. `rows` are at least three good rows, some of them much longer, so that batches are padded;
    `others` are rows of other tasks.

    `kind` is the tiny model it runs on, one of `models.MAKERS`; by default what `task.generative` suggests. Files that
    rows name are named by absolute paths.
    Raises ContractViolation.
    """
    what = f"task {task.name!r}"
    placed = [Row(values, "rows", i) for i, values in enumerate(rows, 1)]
    _check_recognition(task, what, rows, others)
    _check_judgement(task, what, placed)
    for frozen in (False, True):  # a task may put another head on a backbone that stays frozen
        for check in TASK_CHECKS:
            check(_load(task, what, placed, kind or ("decoder" if task.generative else "encoder"), frozen))


@dataclass(frozen=True)
class TaskBench:
    """A task's model, freshly loaded, and its rows, encoded."""

    task: Task
    what: str
    model: nn.Module
    processor: Any
    setting: Setting
    rows: tuple[Row, ...]
    examples: tuple[Mapping[str, Any], ...]

    def require(self, holds: bool, message: str) -> None:
        require(holds, self.what, message)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.task.collate(examples, self.processor, self.setting)

    def predict(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        return Predictor(self.model, self.task, self.processor, self.setting, CPU).predict(rows)


def _load(task: Task, what: str, rows: Sequence[Row], kind: str, frozen: bool) -> TaskBench:
    options = task.settle(rows, task.Options())
    setting = Setting(
        options,
        labels=task.labels(rows, options),
        fitted=task.fit(rows, options),
        sequence_length=128,
        frozen_backbone=frozen,
        generation={"max_new_tokens": 3, "do_sample": False},
    )
    lacking = task.check_given(rows, options, setting.fitted)
    require(lacking is None, what, f"check_given refuses its own training rows ({lacking})")
    read = load_model(Loading(model_folder(kind), task, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor = read.model, read.processor
    encoded = encode(rows, task, processor, setting)
    require(encoded == encode(rows, task, processor, setting), what, "encodes one row in two ways")
    require(len(encoded.examples) == len(rows), what, f"finds nothing to train in {encoded.dropped[:1]}")
    if reference_model.asks(task):
        known = reference_model.ask(Predictor(model, task, processor, setting, CPU), encoded.examples)
        encoded = reference_model.carrying(encoded, known)
    return TaskBench(task, what, model, processor, setting, encoded.rows, encoded.examples)


def junk(count: int = 200) -> list[dict[str, Any]]:
    """Rows that no task expects: wrong types, missing columns, odd names; the same ones every time."""
    draws = random.Random(1)
    names = ["text", "label", "messages", "conversations", "instruction", "output", "prompt", "input", "\0", ""]

    def value(depth: int = 0) -> Any:
        kinds: list[Any] = [None, True, -1, 1.5, "", "\ud83d", "x" * 300, [], {}, [None], [{"role": 3}], {"a": []}]
        if depth < 2 and draws.random() < 0.3:
            return [value(depth + 1) for _ in range(draws.randrange(3))]
        return draws.choice(kinds)

    return [{draws.choice(names): value() for _ in range(draws.randrange(4))} for _ in range(count)]


def _answer(what: str, method: Callable[..., Any], values: Values, *arguments: Any) -> Any:
    """What `method` says of a row, which may lack a label or be junk: it may refuse it, but must not raise."""
    try:
        return method(*arguments)
    except Exception as error:
        raise ContractViolation(f"{what}: {method.__name__} raises {error!r} for {values}") from error


def _check_recognition(task: Task, what: str, rows: Sequence[Values], others: Iterable[Sequence[Values]]) -> None:
    """Its own rows are recognised with a reason, other tasks' are not, and junk does no harm."""
    own = task.recognise(list(rows[0]), list(rows))
    require(bool(own) or task.by_name_only, what, "does not recognise its own rows")
    for other in others:
        reason = task.recognise(list(other[0]), list(other))
        require(reason is None, what, f"claims another task's rows ({reason}): {other[0]}")
    for values in junk():
        _answer(what, task.recognise, values, list(values), [values])


def _check_judgement(task: Task, what: str, rows: Sequence[Row]) -> None:
    """Good rows pass; of junk it says in one line what is wrong."""
    options = task.Options()
    for method in (task.check_row, task.check_input):
        for row in rows:
            complaint = method(row.values, options)
            require(complaint is None, what, f"{method.__name__} refuses a good row ({complaint}): {row.values}")
        for values in junk():
            complaint = _answer(what, method, values, values, options)
            helpful = complaint is None or (len(complaint) > 10 and len(complaint.splitlines()) == 1)
            require(helpful, what, f"{method.__name__} says {complaint!r} of {values}")
    require(task.check_row({}, options) is not None, what, "check_row accepts a row without columns")


def _check_reads(bench: TaskBench) -> None:
    """`reads` names all that checking and encoding a row reads of it: what it leaves out is told as not used."""
    for row in bench.rows:
        named = bench.task.reads(row.values, bench.setting.options)
        if named is None:
            return
        left = set(unused_columns.unread(row.values, list(named)))
        read: set[str] = set()
        watched = replace(row, values=Recorded(row.values, read))
        bench.task.check_row(watched.values, bench.setting.options)
        bench.task.encode(watched, bench.processor, bench.setting)
        silent = sorted(left & read)
        bench.require(not silent, f"reads leaves out {silent[:1]}, which check_row or encode reads of {row.place}")


def _check_counts(bench: TaskBench) -> None:
    """What `encode` counts is what it made: no row is longer than asked, and a shortened one says so."""
    if not bench.task.truncates:
        bench.require(
            not any(e["truncated"] for e in bench.examples), "says that it shortens rows, and truncates=False"
        )
        return
    short = replace(bench.setting, sequence_length=8)
    for row, example in zip(bench.rows, bench.examples, strict=True):
        cut = bench.task.encode(row, bench.processor, short)
        for encoded, longest in ((example, bench.setting.sequence_length), (cut, 8)):
            length = encoded["length"]
            bench.require(length <= longest, f"{row.place} is encoded in {length} tokens, and {longest} were asked for")
        shortened = cut["length"] < example["length"]
        bench.require(bool(cut["truncated"]) == shortened, f"{row.place} says truncated={cut['truncated']} at 8 tokens")


def _check_classes(bench: TaskBench) -> None:
    """A row of a class that the training rows did not have is refused, and neither crashes nor is passed over."""
    if not bench.setting.labels:
        return
    others = replace(bench.setting, labels=tuple(f"not {label}" for label in bench.setting.labels))
    refused = 0
    for row in bench.rows:
        try:
            bench.task.encode(row, bench.processor, others)
        except DataError as error:
            refused += 1
            bench.require(row.place in str(error), f"does not say where a class is that it does not know: {error}")
        except Exception as error:
            raise ContractViolation(f"{bench.what}: encode raises {error!r} for an unknown class") from error
    bench.require(refused > 0, "encodes rows of classes that it does not know")


def _check_loss(bench: TaskBench) -> None:
    """The weight is what `encode` announced; padding and other rows of a batch change neither loss nor gradients."""
    _require_padding(bench)
    bench.model.requires_grad_(True)
    bench.model.eval()
    try:
        _require_same_step(bench, *(_step(bench, batches) for batches in _both_ways(bench)))
    except ContractViolation as violation:
        # A loss of differences loses digits in float32. In float64 a mistake is as large as before, but not rounding.
        bench.model.double()
        try:
            steps = [_step(bench, batches) for batches in _both_ways(bench)]
        except RuntimeError:
            raise violation from None  # it computes in float32 only
        _require_same_step(bench, *steps)
        bench.model.float()


#: Batches of encoded rows.
Batches = Sequence[Sequence[Mapping[str, Any]]]
#: The summed loss of a step, and the gradients by parameter.
Step = tuple[float, dict[str, "Tensor"]]


def _both_ways(bench: TaskBench) -> tuple[Batches, Batches]:
    """All rows in one batch, and each alone."""
    return [list(bench.examples)], [[example] for example in bench.examples]


def _step(bench: TaskBench, batches: Batches) -> Step:
    """One step over these batches, in the precision that the model has."""
    bench.model.zero_grad()
    total, dtype = 0.0, next(p.dtype for p in bench.model.parameters() if p.is_floating_point())
    for batch in batches:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in bench.collate(batch).items()}
        loss = bench.task.loss(bench.model, tensors, bench.setting)
        announced = sum(example["weight"] for example in batch)
        bench.require(float(loss.weight) == announced, f"loss weighs {float(loss.weight)}, encode said {announced}")
        loss.sum.backward()  # type: ignore[no-untyped-call]
        total += float(loss.sum.detach())
    return total, {n: p.grad.clone() for n, p in bench.model.named_parameters() if p.grad is not None}


def _require_same_step(bench: TaskBench, one: Step, other: Step) -> None:
    (whole, gradients), (parts, others) = one, other
    bench.require(abs(whole - parts) <= TOLERANCE * abs(whole), f"loss is {whole} in one batch, {parts} row by row")
    odd = sorted(set(gradients) ^ set(others))
    bench.require(not odd, f"{odd[:1]} has a gradient only in one batch, or only row by row")
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        off = close(gradient, others[name])
        same = same_gradient(gradient, others[name], largest, TOLERANCE)
        bench.require(same, f"the gradient of {name} differs by {off:.1e} with padding, where {TOLERANCE:g} is allowed")


def _require_padding(bench: TaskBench) -> None:
    """The rows given must be able to show a mistake: where lengths differ, a batch of all is wider than a row alone."""
    import torch

    def widths(examples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        tensors = bench.collate(examples)
        odd = [n for n, t in tensors.items() if not isinstance(t, torch.Tensor) or t.device.type != "cpu"]
        bench.require(not odd, f"collate gives {odd[:1]} as something else than a tensor on the CPU")
        return {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}

    alone = [widths([example]) for example in bench.examples]
    if len({example["length"] for example in bench.examples}) > 1:
        together = widths(bench.examples)
        bench.require(
            any(shapes != together for shapes in alone),
            "the rows given are all padded to one width, alone as in a batch: make one much longer",
        )


def _check_predictions(bench: TaskBench) -> None:
    """One JSON object a row, in the rows' order, whatever else is in the batch; rows without answers, too."""
    predictions = bench.predict(bench.rows)
    bench.require(
        len(predictions) == len(bench.rows), f"gives {len(predictions)} predictions for {len(bench.rows)} rows"
    )
    for prediction in predictions:
        _require_json(bench, prediction)
    for row, prediction in zip(bench.rows, predictions, strict=True):
        alone = bench.predict([row])
        bench.require(same_values(alone, [prediction]), f"{row.place} alone gives {alone}, in a batch {prediction}")
    unanswered = [{"text": "a text"}]
    unanswered += [{n: v for n, v in row.values.items() if n != gone} for row in bench.rows for gone in row.values]
    for values in unanswered:
        if values and bench.task.check_input(values, bench.setting.options) is None:
            answers = _answer(bench.what, bench.predict, values, [Row(values)])
            bench.require(
                len(answers) == 1, f"gives {len(answers)} predictions for one row without an answer: {values}"
            )
            _require_json(bench, answers[0])


def _require_json(bench: TaskBench, prediction: Any) -> None:
    try:
        json.dumps(prediction, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractViolation(f"{bench.what}: prediction {prediction} is no JSON: {error}") from error
    bench.require(isinstance(prediction, dict), f"prediction {prediction} is no JSON object")


def _check_metrics(bench: TaskBench) -> None:
    """Metrics are numbers, the primary one among them; `decode` gives what `predict` gives.

    Of a task that generates, `decode` judges rows that have answers, and `predict` writes some: these differ.
    """
    with inference(bench.model, CPU):
        loss = bench.task.loss(bench.model, bench.collate(bench.examples), bench.setting)
        decoded = bench.task.decode(loss.outputs, bench.setting) if loss.outputs is not None else []
    judged = bench.predict(bench.rows) if bench.task.judged_by_answers else decoded
    metrics = bench.task.metrics(judged, bench.rows, float(loss.sum) / float(loss.weight), bench.setting)
    primary, direction = bench.task.judge(bench.setting)
    bench.require(primary in metrics, f"metrics {sorted(metrics)} lack the primary one, {primary!r}")
    bench.require(direction in ("max", "min"), f"the primary metric's direction is {direction!r}, not max or min")
    bench.require(all(isinstance(v, float) for v in metrics.values()), f"metrics are not all numbers: {metrics}")
    if decoded and not bench.task.generative:
        given = bench.predict(bench.rows)
        bench.require(same_values(decoded, given), f"decode gives {decoded}, predict {given}")


def same_values(a: Any, b: Any) -> bool:
    """Equal JSON, its numbers to 1e-5 (padding changes the order in which float32 sums are added up)."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same_values(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_values, a, b))
    return bool(a == b)


TASK_CHECKS: tuple[Callable[[TaskBench], None], ...] = (
    _check_reads,
    _check_counts,
    _check_classes,
    _check_loss,
    _check_predictions,
    _check_metrics,
)
