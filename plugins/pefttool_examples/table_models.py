"""Small transformers that know a table before they are told a class, pretrained here: see `tabular_pretraining`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool_examples import tables

#: The share of cells that come from another row.
SWAPPED = 0.15


def make_shuttle_model(folder: Path) -> None:
    """Of 20,000 Shuttle rows without their labels, none of which `shuttle` trains on or holds out."""
    rows = tables.shuttle()[tables.SHUTTLE_TRAIN + tables.SHUTTLE_EVAL :][:20_000]
    _pretrain(_unlabelled(rows), folder, swapped=SWAPPED)


def make_biopsies_model(folder: Path) -> None:
    """Of the biopsies that `breast-cancer` trains on, without their labels; of none that it holds out."""
    _pretrain(_unlabelled(tables.biopsies()[: tables.CANCER_TRAIN]), folder, swapped=SWAPPED)


def make_campaign_model(folder: Path) -> None:
    """Of 20,000 SYNTHETIC customers of an earlier campaign, and whether they answered that (the column `answered`)."""
    _pretrain(tables.earlier_customers(20_000), folder)


def _unlabelled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name != "label"} for row in rows]


def _pretrain(rows: Sequence[Mapping[str, Any]], folder: Path, **settings: Any) -> None:
    from pefttool import registry

    task: Any = registry.build().tasks["tabular-classification"]
    task.pretrain(rows, folder, **settings)
