"""The contracts of tasks, quantizers and formats."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.base import load_model
from pefttool.batches import encode
from pefttool.errors import DataError
from pefttool.evaluate import inference, predict
from pefttool.interfaces import DataFormat, DataProblem, Facts, Quantizer, Row, Setting, Task
from pefttool.testing.bench import CPU, TOLERANCE, AdapterCase, Bench, ContractViolation, changes, close, snapshot
from pefttool.testing.models import model_folder

if TYPE_CHECKING:
    from torch import Tensor, nn


def require(holds: bool, what: str, message: str) -> None:
    if not holds:
        raise ContractViolation(f"{what}: {message}")


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


def check_task(task: Task, rows: Sequence[Mapping[str, Any]], kind: str) -> None:
    """`rows` are good rows of the task's; `kind` is the tiny model it runs on, `encoder` or `decoder`.

    Raises ContractViolation.
    """
    import torch

    what = f"task {task.name!r}"
    options = task.Options()
    placed = [Row(values, "rows", i) for i, values in enumerate(rows, 1)]
    columns = list(rows[0])
    require(task.recognise(columns, list(rows)) is not None, what, "does not recognise its own rows")
    for row in placed:
        require(task.check_row(row.values, options) is None, what, f"refuses a good row: {row.values}")
    for values in junk():
        complaint = task.check_row(values, options)
        require(complaint is None or len(complaint) > 10, what, f"says {complaint!r} of {values}")
    for frozen in (False, True):
        setting = Setting(
            options,
            labels=task.labels(placed, options),
            sequence_length=128,
            frozen_backbone=frozen,
            generation={"max_new_tokens": 3, "do_sample": False},
        )
        known = Facts(architecture="")
        model, processor, _ = load_model(model_folder(kind), task, setting, None, known, "cpu", "float32")
        encoded = encode(placed, task, processor, setting)
        again = encode(placed, task, processor, setting)
        require(encoded == again, what, "encodes one row in two ways")
        _check_loss(task, what, model, encoded.examples, processor, setting)
        predictions = predict(model, task, placed, processor, setting, CPU)
        require(len(predictions) == len(rows), what, f"gives {len(predictions)} predictions for {len(rows)} rows")
        json.dumps(predictions)
        alone = [p for row in placed for p in predict(model, task, [row], processor, setting, CPU)]
        require(
            [_rounded(p) for p in alone] == [_rounded(p) for p in predictions], what, "predictions depend on the batch"
        )
        _check_metrics(task, what, model, encoded.examples, placed, processor, setting)
    torch.manual_seed(0)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return value


def _check_loss(
    task: Task, what: str, model: nn.Module, examples: Sequence[Any], processor: Any, setting: Setting
) -> None:
    """Weights are what was announced; padding and the company in a batch change neither loss nor gradients."""
    model.requires_grad_(True)
    model.eval()
    found: list[tuple[float, dict[str, Tensor]]] = []
    for batches in ([list(examples)], [[e] for e in examples]):
        model.zero_grad()
        total = 0.0
        for batch in batches:
            tensors = task.collate(batch, processor, setting)
            require(
                all(t.device.type == "cpu" for t in tensors.values()), what, "collates to another device than the CPU"
            )
            loss = task.loss(model, tensors, setting)
            announced = sum(e["weight"] for e in batch)
            require(float(loss.weight) == announced, what, f"loss weighs {float(loss.weight)}, encode said {announced}")
            loss.sum.backward()  # type: ignore[no-untyped-call]
            total += float(loss.sum.detach())
        found.append((total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), (parts, others) = found
    require(abs(whole - parts) <= TOLERANCE * abs(whole), what, f"loss is {whole} in one batch, {parts} row by row")
    largest = max(float(g.norm()) for g in gradients.values())
    for name, gradient in gradients.items():
        if float(gradient.norm()) > 1e-6 * largest:  # keys' biases have no gradient but rounding
            off = close(gradient, others[name])
            require(off <= 10 * TOLERANCE, what, f"the gradient of {name} differs by {off:.1e} with padding")


def _check_metrics(
    task: Task,
    what: str,
    model: nn.Module,
    examples: Sequence[Any],
    rows: Sequence[Row],
    processor: Any,
    setting: Setting,
) -> None:
    with inference(model, CPU):
        loss = task.loss(model, task.collate(examples, processor, setting), setting)
        decoded = task.decode(loss.outputs, setting) if loss.outputs is not None else []
    mean = float(loss.sum) / float(loss.weight)
    metrics = task.metrics(decoded, rows, mean, setting)
    require(task.primary[0] in metrics, what, f"metrics {sorted(metrics)} lack the primary one, {task.primary[0]!r}")
    require(all(isinstance(v, float) for v in metrics.values()), what, f"metrics are not all numbers: {metrics}")
    if decoded:
        given = predict(model, task, rows, processor, setting, CPU)
        require([_rounded(p) for p in decoded] == [_rounded(p) for p in given], what, "decode and predict disagree")


def check_quantizer(quantizer: Quantizer) -> None:
    """On the tiny decoder: outputs near the base's, weights that can be read, bytes that stay. ContractViolation."""
    import torch
    from torch import nn

    what = f"quantizer {quantizer.name!r}"
    case = AdapterCase(_nothing(), "decoder", quantizer)
    plain = Bench.load(AdapterCase(_nothing(), "decoder"))
    bench = Bench.load(case)
    refusal = quantizer.refuses(quantizer.Options(), bench.facts)
    require(refusal is None, what, f"refuses the tiny decoder: {refusal}")
    none = Facts(architecture="NoLinear")
    reason = quantizer.refuses(quantizer.Options(), none)
    require(bool(reason), what, "does not refuse a model without linear layers")
    off = close(plain.outputs(plain.model), bench.outputs(bench.model))
    require(0 < off < 0.5, what, f"outputs differ by {off:.2f} from the unquantised model's")
    before = snapshot(bench.model, set())
    for name in bench.facts.linear_modules:
        quantised, original = bench.model.get_submodule(name), plain.model.get_submodule(name)
        assert isinstance(original, nn.Linear)
        weight = quantizer.dequantize(quantised)
        shape = (original.out_features, original.in_features)
        require(tuple(weight.shape) == shape, what, f"{name}: dequantize gives {tuple(weight.shape)}, expected {shape}")
        require(close(original.weight, weight.float()) < 0.2, what, f"{name}: the weight is not the original's")
        x = torch.randn(3, original.in_features, generator=torch.Generator().manual_seed(0))
        off = close(x @ weight.float().T, quantised(x).float())
        require(off < 0.02, what, f"{name}: output differs by {off:.1e} from x times the dequantised weight")
        stand_in = quantizer.skeleton(original, quantizer.Options())
        stored, real = (sum(p.numel() * p.element_size() for p in m.parameters()) for m in (stand_in, quantised))
        require(stored >= real, what, f"{name}: the skeleton has {stored} bytes of parameters, the real one {real}")
        require(stand_in(x).shape == quantised(x).shape, what, f"{name}: the skeleton's output has another shape")
    bench.outputs(bench.model)
    after = snapshot(bench.model, set())
    changed = changes(before, after)
    require(not changed, what, f"evaluation changed {changed[:1]}")


def _nothing() -> Any:
    return type("Nothing", (), {"name": "none", "trains_base": False})()


def check_format(
    data_format: DataFormat, path: Path, expected: Sequence[Mapping[str, Any]], others: Sequence[Path]
) -> None:
    """`path` is a file of this format with the rows `expected`; `others` are files of other formats."""
    what = f"format {data_format.name!r}"
    options = data_format.Options()
    require(bool(data_format.sniff(path)), what, f"does not recognise {path.name}")
    for other in others:
        require(data_format.sniff(other) is None, what, f"claims {other.name}")
    records = list(data_format.read(path, options))
    rows = [r for r in records if isinstance(r, Row)]
    require(len(rows) == len(records), what, f"finds problems in a good file: {records}")
    require([dict(r.values) for r in rows] == [dict(e) for e in expected], what, "rows are not what was written")
    require(all(r.file == str(path) for r in rows), what, "rows do not name their file")
    lines = [r.line for r in rows]
    require(lines == sorted(set(lines)) and lines[0] >= 1, what, f"places {lines} do not go upwards")
    draws = random.Random(2)
    damaged = path.with_name(f"damaged{path.suffix}")
    for _ in range(30):
        content = bytearray(path.read_bytes())
        for _ in range(3):
            content[draws.randrange(len(content))] = draws.choice(string.printable.encode() + b"\xff\x00")
        damaged.write_bytes(bytes(content[: draws.randrange(len(content))]))
        if data_format.sniff(damaged):
            try:
                found = list(data_format.read(damaged, options))
            except DataError as error:
                require(str(damaged) in str(error), what, f"an error does not name the file: {error}")
                continue
            require(all(isinstance(r, Row | DataProblem) for r in found), what, "a record is neither row nor problem")
