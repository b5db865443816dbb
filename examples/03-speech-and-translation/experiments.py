"""Speech and translation: each half declares its own experiments, in a file beside this one."""

from __future__ import annotations

import importlib
from pathlib import Path

HALVES = sorted(path.stem for path in Path(__file__).parent.glob("*_experiments.py"))
EXPERIMENTS = [experiment for half in HALVES for experiment in importlib.import_module(half).EXPERIMENTS]
