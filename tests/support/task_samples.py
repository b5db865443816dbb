"""Good rows of every registered task, and the tiny model it runs on. A new task adds a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples_text
