"""A tiny model that learns a few rows of a text task, saved as a run saves it, and asked again without pefttool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import run_without_pefttool
from torch import Tensor

from pefttool import Facts, Row, Setting
from pefttool.api.adapter import Adapter
from pefttool.api.task import Task
from pefttool.data.encoding import Encoded, encode
from pefttool.inference.evaluate import evaluate
from pefttool.inference.predictor import Predictor
from pefttool.models.facts import inspect
from pefttool.setup.attach import attach
from pefttool.setup.base import load_model
from pefttool.setup.devices import Choice
from pefttool.setup.loading import Loading
from pefttool.testing.models import model_folder
from pefttool.toolkit import peft_folder

CPU = Choice(device="cpu", dtype="float32", autocast=None, grad_scaler=False, reason="a test")


@dataclass
class Tuned:
    """A trained model on rows, with all that it takes to ask it."""

    task: Task
    adapter: Adapter
    kind: str
    model: Any
    processor: Any
    setting: Setting
    rows: list[Row]
    heads: tuple[str, ...]
    losses: list[float]

    @property
    def examples(self) -> tuple[Mapping[str, Any], ...]:
        return encode(self.rows, self.task, self.processor, self.setting).examples

    def batch(self) -> dict[str, Tensor]:
        return self.task.collate(self.examples, self.processor, self.setting)

    def predict(self, rows: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
        asked = self.rows if rows is None else [Row(values) for values in rows]
        return self.predictor.predict(asked)

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.model, self.task, self.processor, self.setting, CPU)

    def metrics(self) -> dict[str, float]:
        batches = [[i] for i in range(len(self.rows))]
        return evaluate(self.predictor, Encoded(tuple(self.examples), tuple(self.rows), ()), batches)[0]

    def save(self, folder: Path) -> Path:
        """The adapter's files and the head's, in the core's order."""
        self.adapter.save(self.model, folder)
        found = {n: p.detach() for n, p in peft_folder.head_parameters(self.model, self.heads).items()}
        if found:
            peft_folder.write_head(folder, found, self.heads)
        return folder


def fit(
    task: Task,
    values: Sequence[Mapping[str, Any]],
    adapter: Adapter,
    kind: str = "encoder",
    steps: int = 60,
    rate: float = 3e-3,
    sequence_length: int = 128,
    **options: Any,
) -> Tuned:
    """Full-batch Adam on all rows."""
    rows = [Row(value, "rows", i) for i, value in enumerate(values, 1)]
    for row in rows:
        complaint = task.check_row(row.values, task.Options(**options))
        assert complaint is None, complaint
    chosen = task.settle(rows, task.Options(**options))
    setting = Setting(
        chosen,
        labels=task.labels(rows, chosen),
        fitted=task.fit(rows, chosen),
        sequence_length=sequence_length,
        frozen_backbone=adapter.frozen_backbone,
    )
    read = load_model(Loading(model_folder(kind), task, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor = read.model, read.processor
    known = inspect(model, task)
    adapted = attach(model, adapter, adapter.Options(), replace(known, seed=0))
    tuned = Tuned(task, adapter, kind, adapted.model, processor, setting, rows, known.head_modules, [])
    batch = tuned.batch()
    optimizer = torch.optim.Adam(list(adapted.parameters().values()), lr=rate)
    adapted.model.train()
    for _ in range(steps):
        loss = task.loss(adapted.model, batch, setting)
        objective = loss.sum / loss.weight
        objective.backward()
        optimizer.step()
        optimizer.zero_grad()
        tuned.losses.append(float(objective.detach()))
    adapted.model.eval()
    return tuned


def plain_peft_difference(
    saved: Sequence[tuple[Tuned, Path]], auto_class: str, fields: Sequence[str] = ("logits",)
) -> float:
    """How far the outputs of `peft.PeftModel.from_pretrained` are from these models', in a clean process.

    Each is saved in its folder; of models with their own base folder, that is the one its config names.
    """
    jobs = []
    for tuned, folder in saved:
        tuned.save(folder)
        inputs = {n: t for n, t in tuned.batch().items() if n in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            output = tuned.model(**inputs)
        torch.save({"inputs": inputs, "expected": [output[field] for field in fields]}, folder / "expected.pt")
        config = tuned.model.config
        arguments = {"num_labels": config.num_labels, "problem_type": config.problem_type}
        jobs.append((config._name_or_path, str(folder), arguments if auto_class.endswith("Classification") else {}))
    code = f"""
import torch, transformers, peft
transformers.set_seed(99)  # another random head than the run began with
for base, folder, arguments in {jobs!r}:
    model = transformers.{auto_class}.from_pretrained(base, dtype=torch.float32, **arguments)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    stored = torch.load(folder + "/expected.pt")
    with torch.no_grad():
        output = model(**stored["inputs"])
    print(max(float((output[f] - e).abs().max()) for f, e in zip({list(fields)!r}, stored["expected"])))
"""
    differences = [float(line) for line in run_without_pefttool(code).splitlines()]
    assert len(differences) == len(saved)
    return max(differences)
