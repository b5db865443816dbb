"""The jobs of the side-by-side benchmark: the same model, rows, rank, optimiser and seed for every contestant."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

#: Words of a document: log-normal, which gives about 130 tokens on average, many short and a few long ones.
MEDIAN_WORDS, SIGMA, FEWEST_WORDS, MOST_WORDS = 54, 0.95, 8, 400


@dataclass(frozen=True)
class Job:
    """One fine-tuning job, in the terms that both sides understand.

    `kind` is `lm`, `classification` or `head`; `target` and `tuned_target` are the ratios of speed that pefttool must
    reach against the peer with its defaults, and tuned. `rows` and `eval_rows` are of a full run.
    """

    name: str
    title: str
    kind: str
    model: str
    rows: int
    eval_rows: int
    unit: str
    metric: str
    target: float
    tuned_target: float
    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-3
    rank: int = 16
    targets: str | tuple[str, ...] = "all-linear"
    sequence_length: int = 512
    quantize: str | None = None

    def pefttool(self, model: str) -> list[str]:
        """What `pefttool run` is told: the job itself, on the model in this folder; everything else is its default."""
        command = ["--model", model, "--adapter", "head" if self.kind == "head" else "lora"]
        command += ["--task", "causal-lm" if self.kind == "lm" else "text-classification"]
        options = {
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            "train.learning_rate": self.learning_rate,
            "train.sequence_length": self.sequence_length,
            "train.warmup": 0,  # in a few steps a share of them is rounded up by one side and down by the other
            "train.keep_best": "false",  # the last step's adapter, as the peer's
            "check": "files",  # the peer does not load its adapter again either
        }
        if self.kind != "lm":
            options["train.head_learning_rate"] = self.learning_rate
        if self.kind != "head":
            options["adapter.r"] = self.rank
            options["adapter.target_modules"] = json.dumps(self.targets)
        if self.quantize:
            command += ["--quantize", self.quantize]
        return command + [part for key, value in options.items() for part in ("-o", f"{key}={value}")]


SMOLLM2, MINILM = "example:smollm2-135m-instruct", "example:all-minilm-l6-v2"
JOBS = {
    job.name: job
    for job in (
        Job("lm", "SmolLM2-135M, LoRA r=16 all-linear", "lm", SMOLLM2, 40, 24, "tokens", "loss", 3, 2),
        Job("lm-nf4", "the same on NF4, double quant", "lm", SMOLLM2, 40, 24, "tokens", "loss", 3, 2, quantize="nf4"),
        Job(
            "classification",
            "MiniLM, LoRA r=8 query and value",
            "classification",
            MINILM,
            960,
            400,
            "rows",
            "accuracy",
            4,
            1.4,
            batch_size=32,
            rank=8,
            targets=("query", "value"),
            sequence_length=256,
        ),
        Job(
            "head",
            "MiniLM, head only, 5 epochs",
            "head",
            MINILM,
            960,
            400,
            "rows",
            "accuracy",
            10,
            4,
            epochs=5,
            batch_size=32,
            learning_rate=3e-3,
            sequence_length=256,
        ),
    )
}


@dataclass(frozen=True)
class Data:
    train: Path
    eval: Path


def write_data(job: Job, folder: Path, rows: int, eval_rows: int) -> Data:
    """The job's rows as two JSON Lines files, the same for every contestant and on every machine."""
    if job.kind == "lm":
        everything: Sequence[dict[str, str]] = list(itertools.islice(documents(), rows + eval_rows))
        train, held_out = everything[:rows], everything[rows:]
    else:
        train, held_out = (_snippets(part, count) for part, count in (("train", rows), ("eval", eval_rows)))
    data = Data(folder / f"{job.name}-train.jsonl", folder / f"{job.name}-eval.jsonl")
    for path, part in ((data.train, train), (data.eval, held_out)):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return data


def documents() -> Iterator[dict[str, str]]:
    """Documents of mixed length, cut from the language reference that Python's `help()` shows."""
    words = itertools.cycle(word for name in sorted(topics) for word in topics[name].split())
    lengths = random.Random(0)
    while True:
        count = round(lengths.lognormvariate(0.0, SIGMA) * MEDIAN_WORDS)
        yield {"text": " ".join(itertools.islice(words, min(MOST_WORDS, max(FEWEST_WORDS, count))))}


def _snippets(part: str, count: int) -> list[dict[str, str]]:
    from pefttool.config import registry
    from pefttool.data import rows

    folder = rows.resolve("example:movie-snippets", registry.build())
    with (Path(folder) / f"{part}.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in itertools.islice(stream, count)]


def local_model(job: Job) -> str:
    """The folder of the job's model, for whom `example:` means nothing."""
    from pefttool.config import registry
    from pefttool.models import hub

    return str(hub.resolve(job.model, registry.build(), weights=True).path)
