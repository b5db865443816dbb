"""Tasks, quantizers and formats that break their contract on purpose, each caught, and for the right reason."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pefttool.api.errors import DataError
from pefttool.api.values import Row
from pefttool.config import registry as registries
from pefttool.testing import ADAPTER_CHECKS, AdapterCase, ContractViolation, check_format, check_quantizer, check_task

REGISTRY = registries.build()
Classification: Any = type(REGISTRY.tasks["text-classification"])
Chat: Any = type(REGISTRY.tasks["chat"])
NF4: Any = type(REGISTRY.quantizers["nf4"])
JsonLines: Any = type(REGISTRY.formats["jsonl"])

LABELLED = [
    {"text": "good stuff", "label": "pos"},
    {"text": "really quite bad, from its first minute to its last", "label": "neg"},
    {"text": "fine, I suppose", "label": "pos"},
]
PLAIN = [{"text": "a line"}, {"text": "another one"}]


class ClaimsEverything(Classification):
    def recognise(self, columns: Any, sample: Any) -> str | None:
        return "anything will do"


class RecognisesNothing(Classification):
    def recognise(self, columns: Any, sample: Any) -> str | None:
        return None


class TrustsItsRows(Classification):
    def check_row(self, values: Any, options: Any) -> str | None:
        return None if values["text"].strip() and values["label"] else "column 'text' or 'label' is empty"


class AcceptsAnything(Classification):
    def check_row(self, values: Any, options: Any) -> str | None:
        return None


class IsCurt(Classification):
    def check_row(self, values: Any, options: Any) -> str | None:
        return "no" if super().check_row(values, options) else None


class EncodesAtRandom(Classification):
    draws = random.Random(0)

    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        encoded = super().encode(row, processor, setting)
        return {**encoded, "input_ids": self.draws.sample(encoded["input_ids"], encoded["length"])}


class IgnoresTheLength(Classification):
    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        return super().encode(row, processor, replace(setting, sequence_length=128))


class HidesTruncation(Classification):
    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        return {**super().encode(row, processor, setting), "truncated": False}


class RefusesItsTrainingRows(Classification):
    def check_given(self, rows: Any, options: Any, fitted: Any) -> str | None:
        return "no row has the column 'text'"


class CrashesAtAnUnknownClass(Classification):
    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        return {**self._encode_text(row, processor, setting), "label": setting.labels.index(row.values["label"])}


class PassesOverAnUnknownClass(Classification):
    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        known = row.values["label"] in setting.labels
        label = setting.labels.index(row.values["label"]) if known else 0
        return {**self._encode_text(row, processor, setting), "label": label}


class ReadsMoreThanItSays(Classification):
    def reads(self, values: Any, options: Any) -> list[str]:
        return ["text"]


class Misweighs(Classification):
    def encode(self, row: Any, processor: Any, setting: Any) -> dict[str, Any]:
        return {**super().encode(row, processor, setting), "weight": 2}


class Averages(Classification):
    def loss(self, model: Any, batch: Any, setting: Any) -> Any:
        loss = super().loss(model, batch, setting)
        return replace(loss, sum=loss.sum / loss.weight)


class SeesPadding(Classification):
    def collate(self, examples: Any, processor: Any, setting: Any) -> dict[str, Any]:
        batch = super().collate(examples, processor, setting)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


class LeaksGradients(Classification):
    """The value of the loss is right; its gradient depends on the size of the batch."""

    def loss(self, model: Any, batch: Any, setting: Any) -> Any:
        loss = super().loss(model, batch, setting)
        return replace(loss, sum=loss.sum * loss.weight - (loss.sum * (loss.weight - 1)).detach())


class CollatesLists(Classification):
    def collate(self, examples: Any, processor: Any, setting: Any) -> dict[str, Any]:
        batch = super().collate(examples, processor, setting)
        return {**batch, "lengths": [e["length"] for e in examples]}


class Reorders(Classification):
    def predict(self, model: Any, rows: Any, processor: Any, setting: Any) -> list[dict[str, Any]]:
        return super().predict(model, rows, processor, setting)[::-1]


class LosesARow(Classification):
    def predict(self, model: Any, rows: Any, processor: Any, setting: Any) -> list[dict[str, Any]]:
        return super().predict(model, rows, processor, setting)[:2]


class PredictsTensors(Classification):
    def predict(self, model: Any, rows: Any, processor: Any, setting: Any) -> list[dict[str, Any]]:
        return [{**p, "score": torch.tensor(p["score"])} for p in super().predict(model, rows, processor, setting)]


class NeedsLabels(Classification):
    def predict(self, model: Any, rows: Any, processor: Any, setting: Any) -> list[dict[str, Any]]:
        return [
            {**p, "truth": row.values["label"]}
            for p, row in zip(super().predict(model, rows, processor, setting), rows, strict=True)
        ]


class DecodesOtherwise(Classification):
    def decode(self, outputs: Any, setting: Any) -> list[dict[str, Any]]:
        return super().decode(outputs if outputs.requires_grad else -outputs, setting)

    def predict(self, model: Any, rows: Any, processor: Any, setting: Any) -> list[dict[str, Any]]:
        return [{"label": p["label"]} for p in super().predict(model, rows, processor, setting)]


class LacksThePrimary(Classification):
    primary = ("f2", "max")


BROKEN_TASKS = [
    (ClaimsEverything, "claims another task's rows"),
    (RecognisesNothing, "does not recognise its own rows"),
    (TrustsItsRows, "check_row raises .* for"),
    (AcceptsAnything, "check_row accepts a row without columns"),
    (IsCurt, "check_row says 'no' of"),
    (EncodesAtRandom, "encodes one row in two ways"),
    (IgnoresTheLength, "tokens, and 8 were asked for"),
    (HidesTruncation, "says truncated=False"),
    (RefusesItsTrainingRows, r"check_given refuses its own training rows"),
    (CrashesAtAnUnknownClass, r"encode raises ValueError.* for an unknown class"),
    (PassesOverAnUnknownClass, r"encodes rows of classes that it does not know"),
    (ReadsMoreThanItSays, r"reads leaves out \['label'\], which check_row or encode reads of rows:1"),
    (Misweighs, r"loss weighs 3\.0, encode said 6"),
    (Averages, "in one batch, .* row by row"),
    (SeesPadding, "in one batch, .* row by row"),
    (LeaksGradients, "the gradient of .* differs"),
    (CollatesLists, r"collate gives \['lengths'\]"),
    (Reorders, "rows:1 alone gives"),
    (LosesARow, "gives 2 predictions for 3 rows"),
    (PredictsTensors, "is no JSON"),
    (NeedsLabels, "predict raises KeyError"),
    (DecodesOtherwise, "decode gives"),
    (LacksThePrimary, "lack the primary one, 'f2'"),
]


def test_rows_that_cannot_show_a_mistake_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pefttool_text.batching.width_step", lambda: 8)  # as where there is a GPU
    rows = [{**row, "text": row["text"][: 12 + i]} for i, row in enumerate(LABELLED)]
    with pytest.raises(ContractViolation, match="all padded to one width"):
        check_task(SeesPadding(), rows)


@pytest.mark.parametrize(("broken", "says"), BROKEN_TASKS, ids=[broken.__name__ for broken, _ in BROKEN_TASKS])
def test_a_broken_task_is_caught(broken: Any, says: str) -> None:
    with pytest.raises(ContractViolation, match=f"^task 'text-classification': .*{says}"):
        check_task(broken(), LABELLED, others=[PLAIN])


class LosesDigits(Classification):
    """Right, and a difference of nearly equal numbers: in float32 its gradients are right to 1e-4 only."""

    def loss(self, model: Any, batch: Any, setting: Any) -> Any:
        right = super().loss(model, batch, setting)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        near = (logits - (logits * 1.001).detach()).norm(dim=-1).sum()
        return replace(right, sum=right.sum.to(near.dtype) * 0 + near)


def test_a_loss_that_loses_digits_in_float32_is_judged_in_float64() -> None:
    check_task(LosesDigits(), LABELLED, others=[PLAIN])


class StoresTooMuch(NF4):
    def skeleton(self, linear: Any, options: Any) -> Any:
        return torch.nn.Linear(linear.in_features, linear.out_features)


class Transposes(NF4):
    def dequantize(self, linear: Any) -> Any:
        return super().dequantize(linear).T


class Scales(NF4):
    def dequantize(self, linear: Any) -> Any:
        return super().dequantize(linear) * 1.05


class RoundsOtherwise(NF4):
    def round_trip(self, weight: Any, options: Any) -> Any:
        return weight


class QuantisesNothing(NF4):
    def load_arguments(self, options: Any, facts: Any) -> dict[str, Any]:
        return {}

    def after_load(self, model: Any, options: Any) -> None:
        pass


class RefusesNothing(NF4):
    def refuses(self, options: Any, facts: Any) -> str | None:
        return None


class Hooked(NF4):
    def after_load(self, model: Any, options: Any) -> None:
        super().after_load(model, options)
        for module in model.modules():
            if hasattr(module, "quant_state"):
                module.register_forward_hook(self.after)

    def after(self, module: Any, inputs: Any, output: Any) -> Any: ...


class CutsGradients(Hooked):
    def after(self, module: Any, inputs: Any, output: Any) -> Any:
        return output.detach()


class ChangesTheScales(Hooked):
    """The outer ones: with double quantisation the inner ones bear the same name."""

    def after(self, module: Any, inputs: Any, output: Any) -> Any:
        module.weight.quant_state.absmax.data.add_(1)  # behind the back of autograd, which would notice


class MayRepack(NF4):
    """bitsandbytes' own behaviour: in evaluation it rewrites the weights in place."""

    def after_load(self, model: Any, options: Any) -> None:
        pass


def repacks() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


REPACKS = pytest.mark.skipif(not repacks(), reason="only CPUs with AVX512-BF16 repack")
BROKEN_QUANTIZERS = [
    (StoresTooMuch, "the skeleton stores .* bytes"),
    (Transposes, "dequantize gives|differs by .* from the original"),
    (Scales, "differs by .* from x times the dequantised weight"),
    (QuantisesNothing, r"outputs differ by 0\.00"),
    (RoundsOtherwise, "round_trip gives another weight than dequantize"),
    (RefusesNothing, "refuses a model without linear layers with None"),
    (CutsGradients, "no gradient passes through it"),
    (ChangesTheScales, r"evaluation and training changed .*quant_state\.absmax"),
    pytest.param(MayRepack, "", marks=REPACKS),
]


@pytest.mark.parametrize(("broken", "says"), BROKEN_QUANTIZERS)
def test_a_broken_quantizer_is_caught(broken: Any, says: str) -> None:
    with pytest.raises(ContractViolation, match=f"^quantizer 'nf4'.*{says}"):
        check_quantizer(broken())


@REPACKS
def test_a_repacked_base_fails_the_adapters_contract_too() -> None:
    with pytest.raises(ContractViolation, match=r"the base's .*weight.*changed in three steps with evaluations"):
        ADAPTER_CHECKS["base_stays_as_it_was"](AdapterCase(REGISTRY.adapters["lora"], "decoder", MayRepack()))


ROWS = [{"a": "1"}, {"a": "2"}]


class ReadsBackwards(JsonLines):
    def read(self, path: Path, options: Any) -> Iterator[Any]:
        yield from reversed(list(super().read(path, options)))


class CountsFromZero(JsonLines):
    def read(self, path: Path, options: Any) -> Iterator[Any]:
        yield from (replace(record, line=record.line - 1) for record in super().read(path, options))


class ClaimsEveryFile(JsonLines):
    def sniff(self, path: Path) -> str | None:
        return "a file"


class ClaimsNoFile(JsonLines):
    def sniff(self, path: Path) -> str | None:
        return None


class Crashes(JsonLines):
    def read(self, path: Path, options: Any) -> Iterator[Any]:
        path.read_text(encoding="utf-8")
        yield from super().read(path, options)


class NamesNoFile(JsonLines):
    def read(self, path: Path, options: Any) -> Iterator[Any]:
        for record in super().read(path, options):
            if not isinstance(record, Row):
                raise DataError("a line is wrong")
            yield record


class YieldsText(JsonLines):
    def read(self, path: Path, options: Any) -> Iterator[Any]:
        yield from (r if isinstance(r, Row) else str(r) for r in super().read(path, options))


BROKEN_FORMATS = [
    (ReadsBackwards, "rows are not what was written"),
    (CountsFromZero, r"places \['.*:0'"),
    (ClaimsEveryFile, r"claims a\.csv: a file"),
    (ClaimsNoFile, r"does not recognise a\.jsonl"),
    (Crashes, "UnicodeDecodeError.* for a damaged file, expected DataError"),
    (NamesNoFile, "does not name the file: a line is wrong"),
    (YieldsText, "is neither Row nor DataProblem"),
]


@pytest.mark.parametrize(("broken", "says"), BROKEN_FORMATS, ids=[broken.__name__ for broken, _ in BROKEN_FORMATS])
def test_a_broken_format_is_caught(broken: Any, says: str, tmp_path: Path) -> None:
    own, other = tmp_path / "a.jsonl", tmp_path / "a.csv"
    own.write_text('{"a": "1"}\n{"a": "2"}\n')
    other.write_text("a\n1\n2\n")
    check_format(JsonLines(), own, ROWS, [1, 2], [other])
    with pytest.raises(ContractViolation, match=f"^format 'jsonl'.*{says}"):
        check_format(broken(), own, ROWS, [1, 2], [other])
