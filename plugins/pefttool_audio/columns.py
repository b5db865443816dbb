"""Which column holds what, and how a value is shown in a complaint."""

from __future__ import annotations
