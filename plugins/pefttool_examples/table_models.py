"""Small transformers that know a table before they are told a class: pretrained here, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool_examples import patients, tables


def make_shuttle_model(folder: Path) -> None:
    """Of 20,000 Shuttle rows without their labels, none of which `shuttle` trains on or holds out."""
    rows = tables.shuttle()[tables.SHUTTLE_TRAIN + tables.SHUTTLE_EVAL :][:20_000]
    _pretrain([{name: row[name] for name in row if name != "label"} for row in rows], folder, learns="isolation")


def make_campaign_model(folder: Path) -> None:
    """Of 20,000 SYNTHETIC customers of an earlier campaign, and whether they answered that (the column `answered`)."""
    _pretrain(tables.earlier_customers(20_000), folder)


def make_patients_model(folder: Path) -> None:
    """Of the 6,400 SUPPORT patients whom `support2` neither trains on nor holds out, and their stay in hospital."""
    _pretrain(patients.earlier_patients(), folder)


def _pretrain(rows: Sequence[Mapping[str, Any]], folder: Path, **options: Any) -> None:
    from pefttool.cli.for_plugins import current_registry

    task: Any = current_registry().tasks["tabular-classification"]
    task.pretrain(rows, folder, **options)
