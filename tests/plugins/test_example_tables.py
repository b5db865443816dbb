"""The example tables and logs: what is in them, and that the recommender has not seen what is held out."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from pefttool_examples import patients, recommender, tables
from pefttool_examples.archives import Archive
from pefttool_examples.source import DATA

ILL = ("CHF", "Lung Cancer", "Coma")
LATE_OR_FORECAST = {
    *("death", "d.time", "hospdead", "slos", "charges", "totcst", "totmcst", "avtisst", "sfdm2", "dnr", "dnrday"),
    *("adlp", "adls", "adlsc", "edu", "income", "sps", "aps", "surv2m", "surv6m", "prg2m", "prg6m", "sno"),
}


def need(archive: Archive) -> None:
    if archive.installed is None:
        pytest.skip(archive.command)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(name="make")
def _make(tmp_path):
    def make(name: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        DATA[name].make(tmp_path)
        return read(tmp_path / "train.csv"), read(tmp_path / "eval.csv")

    return make


def test_breast_cancer_has_every_biopsy_once(make):
    train, held_out = make("breast-cancer")
    assert Counter(row["label"] for row in [*train, *held_out]) == {"benign": 357, "malignant": 212}
    assert len(train) == tables.CANCER_TRAIN and len(train[0]) == 31


def test_shuttle_keeps_its_prevalence(make):
    need(tables.RIVER)
    train, held_out = make("shuttle")
    share = Counter(row["label"] for row in [*train, *held_out])["anomaly"] / (len(train) + len(held_out))
    assert 0.065 < share < 0.08 and list(train[0]) == [*(f"f{i}" for i in range(1, 10)), "label"]


def test_support2_has_outcomes_but_nothing_that_was_known_after_the_third_day(make):
    need(patients.AUTON)
    train, held_out = make("support2")
    assert (len(train), len(held_out)) == (patients.TRAIN, patients.EVAL)
    assert not set(train[0]) & LATE_OR_FORECAST
    by_disease = Counter((row["dzgroup"], row["label"]) for row in held_out)
    shares = {name: by_disease[name, "died"] / (by_disease[name, "died"] + by_disease[name, "lived"]) for name in ILL}
    assert shares["CHF"] < 0.4 < shares["Lung Cancer"] and shares["Coma"] > 0.6
    died = Counter(row["label"] for row in [*train, *held_out])["died"]
    assert died / (len(train) + len(held_out)) == pytest.approx(0.47, abs=0.02)


def test_the_patients_whose_stay_is_known_are_others_and_what_came_after_it_is_not_said():
    need(patients.AUTON)
    earlier, rows = patients.earlier_patients(), patients._patients()
    assert len({row["sno"] for row in rows}) == len(rows) == 9_105
    others = rows[patients.EVAL + patients.TRAIN :]
    assert [[row[c] for c in patients.COLUMNS] for row in earlier] == [[r[c] for c in patients.COLUMNS] for r in others]
    assert set(earlier[0]) == {*patients.COLUMNS, *patients.STAY, "in_hospital"}
    assert Counter(row["in_hospital"] for row in earlier)["died"] == sum(row["hospdead"] == "1" for row in others)


def test_open_bandit_has_the_random_policy_s_impressions(make):
    need(tables.OBP)
    train, held_out = make("open-bandit")
    assert len(train) + len(held_out) == 30_000
    assert 0.002 < Counter(row["label"] for row in train)["click"] / len(train) < 0.008


def test_synthetic_customers_are_treated_by_lot_and_moved_by_it(make):
    train, held_out = make("synthetic-uplift")
    both = [*train, *held_out]
    treated = [row for row in both if row["treated"] == "1"]
    assert len(treated) == pytest.approx(len(both) / 2, rel=0.05)

    def answers(rows: list[dict[str, str]]) -> float:
        return sum(row["label"] == "yes" for row in rows) / len(rows)

    moved = [row for row in both if row["channel"] == "app" and int(row["days_since"]) < 60 and int(row["age"]) <= 55]
    annoyed = [row for row in both if int(row["age"]) > 55 and int(row["visits"]) >= 6 and row["channel"] != "app"]
    for rows, sign in ((moved, 1), (annoyed, -1)):
        effect = answers([r for r in rows if r["treated"] == "1"]) - answers([r for r in rows if r["treated"] == "0"])
        assert effect * sign > 0.1


def test_the_recommender_s_users_are_others_than_those_it_is_tuned_for():
    need(tables.RECBOLE)
    earlier, later = tables.movielens()
    assert len(earlier) + len(later) == 100_000
    users = [{row[0] for row in part} for part in (earlier, later)]
    assert not users[0] & users[1] and len(users[0] | users[1]) == 943
    assert len({row[1] for row in [*earlier, *later]}) == 1_682  # a name of its own for every film
    first = [
        min(int(row[3]) for row in part if row[0] == user)
        for part, user in zip((earlier, later), map(max, users), strict=True)
    ]
    assert first[0] < first[1]


def test_a_recommender_s_tokens_are_whole_names():
    tokenizer = recommender._tokenizer(["Toy Story (1995)", "Heat (1995)"])
    assert tokenizer.convert_tokens_to_ids(["Heat (1995)", "Toy Story (1995)", "Unheard of"]) == [3, 2, 1]
    assert recommender._model(4).config.vocabulary == "items"
