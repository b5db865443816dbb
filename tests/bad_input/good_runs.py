"""What is good before it is spoilt: rows, a tiny model's folder, and a finished run; each made once."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pefttool.cli.entry import execute

ROWS = [{"text": text, "label": label} for text, label in zip("abcdefgh", "xyxyxyxy", strict=True)]
SMALL = (
    *("--task", "text-classification", "-o", "train.max_steps=1", "-o", "train.rehearse=false"),
    *("-o", "data.cache=false", "-o", "device=cpu", "-o", "dtype=float32", "-o", "train.sequence_length=16"),
    *("-o", "check=files"),
)


def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def model(folder: Path) -> Path:
    """A copy of a tiny encoder that may be spoilt."""
    from pefttool.testing.models import model_folder

    return Path(shutil.copytree(model_folder("encoder"), folder / "model"))


@cache
def _finished(adapter: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pefttool-run-"))
    given = ["--adapter", adapter, "--model", str(model(folder)), "--data", str(rows(folder))]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = execute(["run", *given, *SMALL, "--out", str(folder / "run")])
    assert code == 0, said.getvalue()
    return folder / "run"


def finished(folder: Path, adapter: str = "lora") -> Path:
    """A copy of a finished run that may be spoilt; its base is another folder's."""
    return Path(shutil.copytree(_finished(adapter), folder / "run"))
