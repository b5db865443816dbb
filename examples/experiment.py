"""An experiment of an example: a recipe, what it is measured by, and what it has to beat."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Rows = Sequence[Mapping[str, Any]]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """
    recipe       file beside `experiments.py`; what it leaves open is pefttool's default
    metric       of the held-out rows, as `pefttool run` reports it, and the `direction` that is better
    trivial      (what it is, its metric from training and held-out rows): an answer that needs no model
    scratch      changes to the recipe for the same model with random weights, fully trained for the same epochs;
                 None where that is no baseline (then `why_no_scratch` says why)
    before       what the pretrained model before fine-tuning stands for: "zero-shot", or "an untrained head"
    synthetic    what of the data is synthetic, in a line
    pretrained   for a model that the example has pretrained itself: on what, in a line
    miniature    changes to the recipe that make it a matter of seconds, for the tests
    """

    name: str
    recipe: str
    metric: str
    direction: Literal["max", "min"]
    trivial: tuple[str, Callable[[Rows, Rows], float]]
    scratch: Mapping[str, Any] | None = field(default_factory=dict)
    why_no_scratch: str = ""
    before: str = "an untrained head"
    seeds: tuple[int, ...] = (1, 2, 3)
    synthetic: str | None = None
    pretrained: str | None = None
    miniature: Mapping[str, Any] = field(default_factory=dict)

    def better(self, value: float, than: float) -> bool:
        return value > than if self.direction == "max" else value < than


def examples() -> list[str]:
    """Names of the folders that hold experiments."""
    return sorted(path.parent.name for path in HERE.glob("*/experiments.py"))


def load(example: str) -> list[Experiment]:
    """The experiments of a folder. Modules beside its `experiments.py` can be imported from there."""
    folder = HERE / example
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        spec = importlib.util.spec_from_file_location(f"experiments of {example}", folder / "experiments.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found: list[Experiment] = module.EXPERIMENTS
        return found
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:  # the next folder may have a module of the same name
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == folder:
                del sys.modules[name]
