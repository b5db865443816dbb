"""The series of the examples: what is held out is new, the same every time, and synthetic where it says so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pefttool_examples import appliances, movements, series, series_models
from pefttool_examples.archives import Archive
from pefttool_examples.catalogue import series as catalogue
from pefttool_series.classification import SeriesClassification
from pefttool_series.forecasting import SeriesForecasting


def needs(archive: Archive) -> pytest.MarkDecorator:
    return pytest.mark.skipif(archive.installed is None, reason=f"needs {archive.command}")


fetched = needs(series.AEON)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def both(folder: Path) -> tuple[list[dict], list[dict]]:
    return rows(folder / "train.jsonl"), rows(folder / "eval.jsonl")


def test_synthetic_data_says_so():
    for name, example in {**catalogue.DATA, **catalogue.MODELS}.items():
        recorded = any(isinstance(carrier, Archive) for carrier in example.carriers)
        assert ("SYNTHETIC" in example.about) == (not recorded), name
    assert all(name.startswith("synthetic-") for name, e in catalogue.DATA.items() if "SYNTHETIC" in e.about)


def test_no_machine_is_on_both_sides(tmp_path):
    series.make_degradation(tmp_path)
    train, held_out = both(tmp_path)
    assert (len(train), len(held_out)) == (24, 600)
    assert not {r["machine"] for r in train} & {r["machine"] for r in held_out}
    task = SeriesClassification()
    assert not [r for r in (*train, *held_out) if task.check_row(r, task.Options())]
    assert sum(r["label"] == "fails" for r in held_out) == 300
    again = tmp_path / "again"
    again.mkdir()
    series.make_degradation(again)
    assert (again / "eval.jsonl").read_bytes() == (tmp_path / "eval.jsonl").read_bytes()


def test_a_machine_that_fails_soon_shows_its_wear():
    found = list(series.machines(series.FLEET_B, 100, seed=5))

    def level(label, sensor):
        return sum(sum(r["series"][sensor][-8:]) for r in found if r["label"] == label)

    for sensor, wear in enumerate(series.FLEET_B["wear"]):
        assert math.copysign(1, level("fails", sensor) - level("runs", sensor)) == math.copysign(1, wear)


def test_vehicles_keep_to_their_speed(tmp_path):
    series.make_trajectories(tmp_path)
    train, held_out = both(tmp_path)
    assert (len(train), len(held_out)) == (200, 600)
    task = SeriesForecasting()
    assert not [r for r in train if task.check_row(r, task.Options())]
    low, high = series.TOWN["speed"]
    for row in train:
        assert len(row["series"][0]) == series.PAST and len(row["future"][0]) == series.AHEAD
        speeds = [math.hypot(east, north) for east, north in zip(*row["series"], strict=True)]
        assert low - 1 < min(speeds) and max(speeds) < high + 1


@fetched
def test_speakers_that_the_model_knows_are_not_in_the_data(tmp_path):
    series.make_voices(tmp_path)
    train, held_out = both(tmp_path)
    speakers = {"speaker 6", "speaker 7", "speaker 8", "speaker 9"}
    assert {r["label"] for r in train} == {r["label"] for r in held_out} == speakers
    assert [sum(r["label"] == s for r in train) for s in sorted(speakers)] == [2] * 4
    known, labels = series.known_voices()
    assert set(labels) == set(range(5)) and len(known) + len(train) + len(held_out) == 640
    seen = [json.dumps(r["series"]) for r in (*train, *held_out)]
    assert len(set(seen)) == len(seen) and not set(map(json.dumps, known)) & set(seen)


@needs(appliances.SKTIME)
def test_kinds_that_the_model_knows_are_not_in_the_data(tmp_path):
    appliances.make_appliances(tmp_path)
    train, held_out = both(tmp_path)
    assert (len(train), len(held_out)) == (64, 292)
    assert {r["label"] for r in train} == {r["label"] for r in held_out} == set(appliances.NEW_KINDS)
    assert all(sum(r["label"] == kind for r in train) == 16 for kind in appliances.NEW_KINDS)
    known, kinds = appliances.known_appliances()
    assert (len(known), len(set(kinds))) == (485, 7) and not set(kinds) & set(appliances.NEW_KINDS)
    seen = [json.dumps(r["series"]) for r in (*train, *held_out)]
    assert len(set(seen)) == len(seen) and not {json.dumps([series]) for series in known} & set(seen)
    assert {len(r["series"][0]) for r in (*train, *held_out)} == {appliances.LENGTH}
    assert all(max(map(abs, r["series"][0])) <= 1 for r in (*train, *held_out))


def test_an_appliance_is_seen_from_shortly_before_it_is_switched_on():
    before, after = appliances.BEFORE, appliances.LENGTH - appliances.BEFORE
    assert appliances.switched_on([0.0] * 300 + [4.0] * 600 + [-8.0]) == [0.0] * before + [0.5] * after
    short = appliances.switched_on([1.0] * 20 + [4.0] * 80)
    assert short == [0.25] * 112 + [1.0] * 80


@needs(movements.KEEL)
def test_movements_that_the_model_knows_are_not_in_the_data(tmp_path):
    movements.make_movements(tmp_path)
    train, held_out = both(tmp_path)
    assert (len(train), len(held_out)) == (28, 69)
    names = {f"movement {number}" for number in movements.NEW_MOVEMENTS}
    assert {r["label"] for r in train} == {r["label"] for r in held_out} == names
    assert all(sum(r["label"] == name for r in train) == 4 for name in names)
    known, numbers = movements.known_movements()
    assert len(set(numbers)) == 8 and not set(numbers) & set(movements.NEW_MOVEMENTS)
    seen = [json.dumps(r["series"]) for r in (*train, *held_out)]
    assert len(set(seen)) == len(seen) and not set(map(json.dumps, known)) & set(seen)
    assert {len(channel) for r in (*train, *held_out) for channel in r["series"]} == {movements.LENGTH}
    assert {len(r["series"]) for r in (*train, *held_out)} == {2}


def test_a_movement_at_another_pace_begins_and_ends_where_it_did():
    times = torch.linspace(0, 1, 45).view(1, 45, 1).expand(8, 45, 2)
    torch.testing.assert_close(series_models.at_another_pace(times, 0.0), times)
    with series_models.seeded():
        found = series_models.at_another_pace(times, 0.3)
    torch.testing.assert_close(found[:, [0, -1]], times[:, [0, -1]])
    assert (found.diff(dim=1) > 0).all()
    middles = found[:, 22]
    assert middles[:, 0].equal(middles[:, 1]) and middles.std() > 0.05


@fetched
def test_summer_days_are_none_of_winter(tmp_path):
    series.make_power_demand(tmp_path)
    train, held_out = both(tmp_path)
    assert (len(train), len(held_out)) == (16, 533)
    summer = {json.dumps(r["series"][0] + r["future"][0]) for r in (*train, *held_out)}
    assert len(series.winter_days()) == 547 and not summer & {json.dumps(day) for day in series.winter_days()}


def test_pretraining_leaves_the_random_state_alone_and_repeats_itself():
    def made():
        with series_models.seeded():
            model = series_models.forecaster(context_length=8, prediction_length=4, patch_length=4, patch_stride=4)
            values = torch.randn(16, 12, 1)
            series_models.train(model, series_models.forecast(model, lambda: values), steps=2)
        return model.state_dict()

    before = torch.random.get_rng_state()
    one, other = made(), made()
    assert torch.random.get_rng_state().equal(before)
    assert all(value.equal(other[name]) for name, value in one.items())
    marked = series_models.where(torch.tensor([True, False]), lambda v: -v, torch.ones(2, 3, 1))
    assert marked.squeeze(-1).tolist() == [[-1.0] * 3, [1.0] * 3]
    padded = series_models.padded([[[1.0, 2.0, 3.0]], [[4.0]]], 2)
    assert padded.squeeze(-1).tolist() == [[2.0, 3.0], [4.0, 4.0]]
