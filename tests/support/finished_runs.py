"""Small finished runs in this process, each made once in a test session: for what is done with run folders."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frozen_runs import fine_tune, store_model, write_rows

from pefttool.config.registry import Registry

#: By name: model, task, adapter, recipe keys. Rates are high: a few steps must change the outputs.
FAST = {"train__epochs": 1, "train__learning_rate": 2e-2, "check": "none"}
RUNS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "lora": ("llama", "causal-lm", "lora", {}),
    "dora": ("llama", "causal-lm", "lora", {"adapter__use_dora": True, "adapter__use_rslora": True}),
    "lora-nf4": ("llama", "causal-lm", "lora", {"quantize": "nf4"}),
    "lora-nf4-flat": ("llama", "causal-lm", "lora", {"quantize": {"name": "nf4", "double_quant": False}}),
    "lora-int8": ("llama", "causal-lm", "lora", {"quantize": "int8"}),
    "lora-classes": ("bert", "text-classification", "lora", {}),
    "lora-pooled": ("bert", "text-classification", "lora", {"task__pooling": "mean"}),
    "lora-seq2seq": ("marian", "seq2seq", "lora", {}),
    "head": ("llama", "causal-lm", "head", {}),
    "head-classes": ("bert", "text-classification", "head", {}),
    "full-classes": ("bert", "text-classification", "full", {}),
    "prefix": ("llama", "causal-lm", "prefix", {}),
}


@dataclass
class Runs:
    """Run folders by name. `copy` gives one that may be spoilt."""

    registry: Registry
    root: Path
    made: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path:
        if name not in self.made:
            kind, task, adapter, options = RUNS[name]
            model = self.root / kind
            if not model.is_dir():
                store_model(kind, model)
            folder = self.root / f"rows-{task}"
            folder.mkdir(exist_ok=True)
            rows = write_rows(folder, task)
            fine_tune(self.registry, self.root / "runs" / name, model, rows, task, adapter, **FAST, **options)
            self.made[name] = self.root / "runs" / name
        return self.made[name]

    def copy(self, name: str, target: Path) -> Path:
        shutil.copytree(self[name], target)
        return target
