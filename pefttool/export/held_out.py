"""Rows to judge a finished run by: its own held-out rows, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pefttool.api.errors import DataError, UsageError
from pefttool.api.values import Row
from pefttool.config import recipe, recipe_file
from pefttool.config.registry import Registry
from pefttool.data import corpus, rows
from pefttool.export.reload import Reloaded
from pefttool.runs import run_paths
from pefttool.runs.adapter_facts import ADAPTER_FACTS
from pefttool.runs.run_folder import ADAPTER, METRICS, RECIPE

Complaint = Callable[[Mapping[str, Any], Any], str | None]


def of(run: Path, registry: Registry, loaded: Reloaded, data: str | None, data_format: str | None) -> tuple[Row, ...]:
    """Rows with answers: those of `data` (a file, a folder, SOURCE:REFERENCE), or without it the run's own.

    Raises DataError for a bad row, and where the run's data is no longer what it was split from; UsageError where
    nothing says what the run's rows were.
    """
    if data is not None:
        chosen = given(rows.resolve(data, registry), registry, loaded, loaded.task.check_row, data_format)
        arranged = loaded.task.arrange((), chosen, 1.0, loaded.setting.options)
        return chosen if arranged is None else arranged.eval
    folders = (run, run.parent) if run.name == ADAPTER and (run / ADAPTER_FACTS).is_file() else (run,)
    path = next((folder / RECIPE for folder in folders if (folder / RECIPE).is_file()), None)
    if path is None:
        raise UsageError(f"{run} has no {RECIPE} that says what its held-out rows were: give --data FILE")
    own = recipe.resolve(run_paths.followed(recipe_file.read(path), path), registry)
    found = corpus.load(own, registry, skip_bad_rows=True)
    # Of other files the seed holds out other rows: among them some that were trained on.
    if _trained_on(path.parent / METRICS) not in (None, found.sha256):
        files = " with ".join(str(part) for part in (own.data.train, own.data.eval) if part is not None)
        raise DataError(
            f"data {files} is not what {path.parent} was split from (its hash differs), so that rows may have"
            " been trained on: restore it, or give --data FILE"
        )
    return found.eval


def _trained_on(metrics: Path) -> str | None:
    """The hash of the data that a run was split from. None: it did not finish, or an older version made it."""
    try:
        document = json.loads(metrics.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{metrics} cannot be read: {error}; restore the file, or give --data FILE") from error
    found = document.get("data_sha256") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def given(
    path: Path, registry: Registry, loaded: Reloaded, check: Complaint, data_format: str | None
) -> tuple[Row, ...]:
    """The rows of a file or folder, in the run's own format unless another is asked for. Raises DataError."""
    named = data_format is not None and data_format != loaded.format
    how = (data_format, {}) if named else (loaded.format, loaded.format_options)
    files = rows.files_of(path, registry, how[0])
    reading = rows.read([*files.train, *files.eval], registry, *how)
    for problem in reading.problems:
        raise DataError(str(problem))
    if not reading.rows:
        raise DataError(f"{path} has no rows: give a file with at least one")
    options = loaded.setting.options
    found = tuple(loaded.task.locate(row, options) for row in reading.rows)
    for row in found:
        complaint = check(row.values, options)
        if complaint:
            raise DataError(f"{row.place}: {complaint}; mend it")
    lacking = loaded.task.check_given(found, options, loaded.setting.fitted)
    if lacking:
        raise DataError(f"data {path}: {lacking}")
    return found
