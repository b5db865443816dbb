"""What a GPU run writes: the machine it ran on, statistics of times, JSON lines."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "bitsandbytes", "transformers", "peft", "pefttool")
#: What `nvidia-smi` is asked, once before and once after: a card that has become slower shows here.
QUERY = (
    "name",
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


class Record:
    """Prints lines and writes JSON lines, each flushed: what was measured before a crash is kept."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}-{stamp}.jsonl"
        self._file = self.path.open("x", encoding="utf-8")

    def write(self, type: str, **fields: Any) -> None:
        self._file.write(json.dumps({"type": type, **fields}) + "\n")
        self._file.flush()

    def say(self, line: str = "") -> None:
        print(line, flush=True)

    def close(self) -> None:
        self._file.close()


def machine(device: torch.device) -> dict[str, Any]:
    """The header line: card, driver, clocks, power limit, and the versions of what is measured."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "bytes": properties.total_memory,
        }
        found["nvidia_smi"] = nvidia_smi(device)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia_smi(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks and power of the card, or None where the tool is not there."""
    identity = str(torch.cuda.get_device_properties(device).uuid)
    return _ask_nvidia_smi(f"GPU-{identity}")


def _ask_nvidia_smi(identity: str) -> dict[str, str] | None:
    command = ["nvidia-smi", f"--id={identity}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERY, (value.strip() for value in answer.strip().split(",")), strict=False))


def statistics(times: Sequence[float]) -> dict[str, float]:
    """Median, tenth and ninetieth percentile, in milliseconds; each is a time that was measured."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "median": ordered[round(last * 0.5)],
        "p10": ordered[round(last * 0.1)],
        "p90": ordered[round(last * 0.9)],
        "rounds": len(ordered),
    }
