"""Example tables and logs: MovieLens, Shuttle, breast cancer, Open Bandit, and made-up customers."""

from __future__ import annotations

import csv
import gzip
import io
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool_examples.archives import Archive

#: MovieLens may be used for research; its files are read where they were fetched, and never passed on.
RECBOLE = Archive(
    "recbole==1.2.1",
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
RIVER = Archive(
    "river==0.26.1",
    "river-0.26.1-cp311-cp311-manylinux_2_28_x86_64.whl",
    "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef",
)
OBP = Archive(
    "obp==0.4.1",
    "obp-0.4.1-py3-none-any.whl",
    "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
)
#: The share of MovieLens' users, by the time of their first rating, that `recommender-tiny` is pretrained on.
EARLIER = 0.6
SHUTTLE_TRAIN, SHUTTLE_EVAL = 4_000, 3_000
CANCER_TRAIN = 300
BANDIT_TRAIN = 0.7
CUSTOMERS_TRAIN, CUSTOMERS_EVAL = 3_000, 3_000


def make_movielens(folder: Path) -> None:
    """The later users' interactions: those that `recommender-tiny` has not seen."""
    _write_log(folder / "later-users.inter", movielens()[1])


def make_movielens_earlier(folder: Path) -> None:
    """The earlier users' interactions, which `recommender-tiny` is pretrained on."""
    _write_log(folder / "earlier-users.inter", movielens()[0])


def movielens() -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """(earlier, later) interactions as (user, film, rating, timestamp), by when their user rated for the first time."""
    place = "recbole/dataset_example/ml-100k/ml-100k"
    with RECBOLE.opened() as members:
        films = members.read(f"{place}.item").decode("utf-8").splitlines()[1:]
        log = members.read(f"{place}.inter").decode("utf-8").splitlines()[1:]
    titles: dict[str, str] = {}
    for line in films:
        number, title, year, _ = line.split("\t")
        name = f"{title} ({year})" if year else title
        titles[number] = name if name not in titles.values() else f"{name} #{number}"
    rows = [(user, titles[item], rating, time) for user, item, rating, time in (line.split("\t") for line in log)]
    first: dict[str, int] = {}
    for user, _, _, time in rows:
        first[user] = min(first.get(user, int(time)), int(time))
    order = sorted(first, key=lambda user: (first[user], int(user)))
    earlier = set(order[: int(len(order) * EARLIER)])
    return [row for row in rows if row[0] in earlier], [row for row in rows if row[0] not in earlier]


def _write_log(path: Path, rows: Iterable[Sequence[str]]) -> None:
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")


def make_shuttle(folder: Path) -> None:
    """Statlog Shuttle: nine measurements a row, and whether the state is not the usual one (7 % of the rows)."""
    rows = shuttle()
    write_csv(folder / "train.csv", rows[:SHUTTLE_TRAIN])
    write_csv(folder / "eval.csv", rows[SHUTTLE_TRAIN : SHUTTLE_TRAIN + SHUTTLE_EVAL])


def shuttle() -> list[dict[str, str]]:
    """All 49,097 rows, in a fixed random order."""
    table = gzip.decompress(RIVER.read("river/datasets/shuttle.csv.gz")).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(table)))
    for row in rows:
        row["label"] = "anomaly" if row.pop("anomaly") == "1" else "normal"
    random.Random(0).shuffle(rows)
    return rows


def make_breast_cancer(folder: Path) -> None:
    """Wisconsin diagnostic breast cancer: 30 measurements of the cell nuclei of a biopsy, malignant or benign."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    rows = [
        {**dict(zip(names, map(float, values), strict=True)), "label": str(found.target_names[target])}
        for values, target in zip(found.data, found.target, strict=True)
    ]
    random.Random(0).shuffle(rows)
    write_csv(folder / "train.csv", rows[:CANCER_TRAIN])
    write_csv(folder / "eval.csv", rows[CANCER_TRAIN:])


def make_open_bandit(folder: Path) -> None:
    """What a fashion shop showed at random, to whom, and whether it was clicked (0.4 %): the first 70 % to train.

    Logs of the three campaigns under the random policy, each in order of time.
    """
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    with OBP.opened() as members:
        for campaign in ("all", "men", "women"):
            text = members.read(f"obp/dataset/obd/random/{campaign}/{campaign}.csv").decode("utf-8")
            rows = sorted(csv.DictReader(io.StringIO(text)), key=lambda row: row["timestamp"])
            kept = [_impression(campaign, row) for row in rows]
            cut = int(len(kept) * BANDIT_TRAIN)
            parts["train"] += kept[:cut]
            parts["eval"] += kept[cut:]
    for name, rows_ in parts.items():
        write_csv(folder / f"{name}.csv", rows_)


def _impression(campaign: str, row: Mapping[str, str]) -> dict[str, Any]:
    affinity = row.get(f"user-item_affinity_{row['item_id']}", "")
    # The hashed features are long; their first characters tell them apart.
    user = {f"user_{i}": row[f"user_feature_{i}"][:8] for i in range(4)}
    place = {"campaign": campaign, "position": row["position"], "item": row["item_id"], "hour": row["timestamp"][11:13]}
    return {**place, **user, "affinity": affinity, "label": "click" if row["click"] == "1" else "none"}


def make_uplift(folder: Path) -> None:
    """SYNTHETIC customers, half of whom, by lot, were sent an offer: who answers, and whom the offer moves."""
    draws = random.Random(0)
    rows = [_customer(draws) for _ in range(CUSTOMERS_TRAIN + CUSTOMERS_EVAL)]
    write_csv(folder / "train.csv", rows[:CUSTOMERS_TRAIN])
    write_csv(folder / "eval.csv", rows[CUSTOMERS_TRAIN:])


def earlier_customers(count: int) -> list[dict[str, Any]]:
    """SYNTHETIC customers of an earlier campaign with a weaker offer; `answered` is what `label` is in this one."""
    draws = random.Random(1)
    found = [_customer(draws, usual=-1.2, strength=0.7) for _ in range(count)]
    return [{("answered" if name == "label" else name): row[name] for name in row} for row in found]


def _customer(draws: random.Random, usual: float = -1.6, strength: float = 1.0) -> dict[str, Any]:
    age, visits, since = draws.randint(18, 80), min(int(draws.expovariate(1 / 6)), 40), int(draws.expovariate(1 / 60))
    spent = round(draws.lognormvariate(4, 0.8), 2)
    channel, region = draws.choice(("app", "web", "shop")), draws.choice(("north", "south", "east", "west"))
    treated = draws.randrange(2)
    usual += 0.06 * min(visits, 20) - 0.006 * min(since, 150) + 0.15 * math.log(spent / 55)
    # The offer brings back those who come seldom and lately did, by the app above all; it annoys the old regulars.
    moved = 2.2 if channel == "app" and since < 60 else 0.9 if since < 60 and visits < 8 else 0.0
    moved -= 1.6 if age > 55 and visits >= 6 else 0.0
    answers = draws.random() < 1 / (1 + math.exp(-(usual + strength * moved * treated)))
    given = {"age": age, "visits": visits, "days_since": since, "spent": spent, "channel": channel, "region": region}
    return {**given, "treated": treated, "label": "yes" if answers else "no"}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
