"""The real training loop on a line: y = w x + b, with rows that weigh differently."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import torch

from pefttool.api import events
from pefttool.api.adapter import Adapter
from pefttool.api.task import Task
from pefttool.api.values import Attached, Loss, Row, Setting
from pefttool.config.settings import TrainSettings
from pefttool.data.encoding import Examples, encode
from pefttool.setup.attach import Adapted
from pefttool.setup.prepared import Prepared, Session
from pefttool.training import loop


class Line(Task):
    """Fit y = w·x with rows that weigh differently; `held_out` scripts what each evaluation finds."""

    name = "line"
    primary = ("score", "max")
    held_out: list[float]

    def recognise(self, columns, sample):
        return None

    def check_row(self, values, options):
        return None

    def load(self, source, setting):
        raise NotImplementedError

    def encode(self, row, processor, setting):
        return {**row.values, "weight": row.values["n"], "length": row.values["n"], "trained": 1, "truncated": False}

    def collate(self, examples, processor, setting):
        return {k: torch.tensor([float(e[k]) for e in examples]) for k in ("x", "y", "n")}

    def loss(self, model, batch, setting):
        error = model(batch["x"][:, None])[:, 0] - batch["y"]
        return Loss((batch["n"] * error**2).sum(), batch["n"].sum())

    def predict(self, model, rows, processor, setting):
        return [{} for _ in rows]

    def metrics(self, predictions, rows, loss, setting):
        return {"score": self.held_out.pop(0) if self.held_out else -loss, "loss": loss}


class Whole(Adapter):
    name = "whole"
    steps: list[int]

    def __init__(self):
        self.steps = []

    def attach(self, model, options, facts):
        return Attached(model, frozenset(n for n, _ in model.named_parameters()))

    def save(self, model, folder):
        folder.mkdir(parents=True)

    def load(self, model, folder):
        raise NotImplementedError

    def after_step(self, model, step):
        self.steps.append(step)


class Recorder:
    def __init__(self, at_step):
        self.seen, self.step, self.control, self.at_step = [], 0, events.Control(), at_step

    def __call__(self, event):
        self.seen.append(replace(event, step=self.step))
        if isinstance(event, events.StepDone) and self.step in self.at_step:
            self.at_step[self.step]()

    def of(self, kind):
        return [e for e in self.seen if isinstance(e, kind)]


ACCELERATOR = SimpleNamespace(
    num_processes=1, process_index=0, is_main_process=True, no_sync=lambda model: nullcontext()
)
CPU = SimpleNamespace(device="cpu", dtype="float32", autocast=None, grad_scaler=False)


def fit(tmp_path, held_out=(), stop_at=None, at_step=None, rows=None, **settings):
    tmp_path.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    task, adapter, emit = Line(), Whole(), Recorder(dict(at_step or {}))
    if stop_at is not None:
        emit.at_step[stop_at] = lambda: emit.control.stop("enough")
    task.held_out = list(held_out)
    defaults = {"batch_size": 2, "epochs": 3, "learning_rate": 0.05, "warmup": 0.0, "max_grad_norm": 1e9}
    recipe = SimpleNamespace(train=TrainSettings(**{**defaults, **settings}))
    choices = {"choice": CPU, "facts": SimpleNamespace(parameters=2), "base_is_mapped": False}
    plan = SimpleNamespace(recipe=recipe, task=task, adapter=adapter, **choices)
    base = SimpleNamespace(processor=None, setting=Setting(None))
    rows = rows or [Row({"x": i / 7, "y": 2 * i / 7 + 1, "n": 1 + i % 3}) for i in range(8)]
    data = encode(rows, task, None, base.setting)
    adapted = Adapted(model, ("weight", "bias"), (), True)
    prepared = Prepared(plan, base, adapted, Examples(data, data))
    result = loop.train(prepared, Session(tmp_path, emit, ACCELERATOR))
    return SimpleNamespace(model=model, result=result, emit=emit, adapter=adapter)
