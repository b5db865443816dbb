"""Windows of long series, and the errors of forecasts: no future leaks into training, and numbers are those known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError
from pefttool.api.facts import Facts
from pefttool.api.values import Row
from pefttool_series.forecasting import SeriesForecasting
from pefttool_series.metrics import errors, seasonal_error, seasonal_naive
from pefttool_series.windows import Cut, arrange

TASK = SeriesForecasting()


def cut(horizon: int = 3, shortest: int = 4, longest: int = 5, stride: int = 2) -> Cut:
    return Cut("series", "future", horizon, shortest, longest, stride)


def counting(length: int) -> Row:
    """A series whose values are their own places."""
    return Row(
        {"id": "a", "series": [[float(i) for i in range(length)]], "timestamps": list(range(length))}, "a.csv", 7
    )


@given(
    length=st.integers(8, 90),
    fraction=st.floats(0.05, 0.6),
    horizon=st.integers(1, 6),
    longest=st.integers(1, 30),
    stride=st.integers(1, 7),
)
@settings(max_examples=200, deadline=None)
def test_what_is_held_out_lies_behind_all_that_is_trained_on(length, fraction, horizon, longest, stride):
    shape = cut(horizon, max(horizon, 2), longest, stride)
    found = arrange([counting(length)], None, fraction, shape)
    trained = [set(row.values["series"][0]) | set(row.values["future"][0]) for row in found.train]
    judged = [row.values["future"][0] for row in found.eval]
    for row in (*found.train, *found.eval):
        past, future = row.values["series"][0], row.values["future"][0]
        assert len(future) == horizon and 1 <= len(past) <= longest
        assert future == [past[-1] + 1 + i for i in range(horizon)]  # nothing between them is left out
        assert row.place == "a.csv:7" and "timestamps" not in row.values
    if judged:
        assert max(map(max, trained), default=-1) < min(map(min, judged))
        assert len({value for future in judged for value in future}) == len(judged) * horizon  # each is judged once


def test_windows_go_up_to_the_split_on_both_sides():
    found = arrange([counting(20)], None, 0.3, cut())
    assert [row.values["future"][0][0] for row in found.eval] == [14.0, 17.0]
    assert [row.values["future"][0][0] for row in found.train] == [5.0, 7.0, 9.0, 11.0]
    assert found.eval[0].values["series"][0] == [9.0, 10.0, 11.0, 12.0, 13.0]  # the past may lie before the split
    assert found.notices == (
        "data: 4 windows to train on and 2 held out, of 3 values to forecast: split by time, all that is held out lies"
        " in the last 30% of its series",
    )


def test_held_out_files_are_windows_too_and_train_series_are_used_whole():
    found = arrange([counting(20)], [counting(12)], 0.3, cut())
    assert found.train[-1].values["future"][0] == [17.0, 18.0, 19.0]
    assert [row.values["future"][0][0] for row in found.eval] == [4.0, 7.0]


def test_windows_of_the_users_own_are_held_out_from_the_end():
    own = [Row({"series": [1.0, 2.0], "future": [float(i)] * 3}) for i in range(10)]
    found = arrange(own, None, 0.2, cut())
    assert [row.values["future"][0] for row in found.eval] == [8.0, 9.0]
    assert arrange(own, own[:1], 0.2, cut()).train == tuple(own)


def test_series_too_short_for_both_sides_are_trained_on_and_counted():
    found = arrange([counting(20), counting(8)], None, 0.3, cut())
    assert "1 series are too short" in found.notices[1]
    alone = arrange([counting(20)], None, 0.3, cut())
    assert len(found.train) == len(alone.train) + 1 and found.eval == alone.eval


def test_the_task_cuts_by_its_options():
    options = TASK.Options(prediction_length=4, season=6, context_length=9)
    found = TASK.arrange([counting(60)], None, 0.2, options)
    assert min(row.values["future"][0][0] for row in found.train) >= 7  # a season and one more to measure it by
    assert max(len(row.values["series"][0]) for row in found.train) == 9
    judging = TASK.arrange((), [counting(60)], 1.0, options)
    assert not judging.train and judging.eval


@pytest.mark.parametrize("season", [8, 9])
def test_a_season_that_no_window_can_hold_is_refused(season):
    options = TASK.Options(prediction_length=4, season=season, context_length=8)
    (problem,) = TASK.check(options, Facts("any"))
    assert str(problem) == (
        f"task.season: {season} is not less than task.context_length (8): no window would hold more than a season, as"
        " MASE needs: raise task.context_length above it, or lower task.season"
    )
    assert not TASK.check(TASK.Options(season=7, context_length=8), Facts("any"))


def test_windows_that_nothing_can_be_judged_by_are_refused_before_training():
    flat = Row({"series": [[1.0] * 40]}, "flat.csv", 3)
    options = TASK.Options(prediction_length=4, season=2)
    with pytest.raises(DataError, match=r"flat.csv:3: none of the 2 held-out windows has a MASE .*task.season: 2"):
        TASK.arrange([flat], None, 0.2, options)
    weekly = Row({"series": [[float(i % 4) for i in range(40)]]}, "weekly.csv", 1)
    with pytest.raises(DataError, match="never change from season to season"):
        TASK.arrange([weekly], None, 0.2, TASK.Options(prediction_length=4, season=4))
    assert TASK.arrange([flat, weekly], None, 0.2, options).eval, "one that can be judged by is enough"
    short = [Row({"series": [1.0, 2.0], "future": [3.0]}) for _ in range(4)]
    with pytest.raises(DataError, match="no longer than one"):
        TASK.arrange(short, None, 0.5, TASK.Options(season=2))
    assert TASK.arrange((), [flat], 1.0, options).eval, "a finished run may be asked about any rows"


def test_errors_have_their_known_values():
    past, future = np.array([[1.0, 2.0, 4.0, 7.0]]), np.array([[8.0, 10.0]])
    assert seasonal_error(past, 1).tolist() == [2.0]
    assert seasonal_error(past, 2).tolist() == [4.0]
    assert math.isnan(seasonal_error(past, 4)[0])
    assert seasonal_naive(past, 1, 3).tolist() == [[7.0, 7.0, 7.0]]
    assert seasonal_naive(past, 2, 3).tolist() == [[4.0, 7.0, 4.0]]
    found = errors([np.array([[8.0, 13.0]])], [future], [past], 1)
    assert found["mae"] == 1.5 and found["mse"] == 4.5
    assert found["smape"] == pytest.approx((0 + 2 * 3 / 23) / 2)
    assert found["mase"] == 0.75  # a mean error of 1.5 by 2
    assert found["mase_seasonal_naive"] == pytest.approx((1 + 3) / 2 / 2)


def test_missing_values_and_pasts_that_never_change_are_left_out():
    past = np.array([[1.0, np.nan, 3.0, 5.0], [2.0, 2.0, 2.0, 2.0]])
    assert seasonal_error(past, 1).tolist() == [2.0, 0.0]
    assert seasonal_naive(np.array([[1.0, np.nan]]), 1, 1).tolist() == [[1.0]]
    future = np.array([[6.0, np.nan], [3.0, 3.0]])
    found = errors([np.zeros((2, 2))], [future], [past], 1)
    assert found["mase"] == 3.0 and found["mae"] == 4.0
    unscaled = errors([np.zeros((1, 2))], [np.full((1, 2), 3.0)], [past[1:]], 1)
    assert unscaled["mae"] == 3.0 and math.isnan(unscaled["mase"]) and math.isnan(unscaled["mase_seasonal_naive"])
    assert errors([np.zeros((1, 2))], [np.zeros((1, 2))], [past[:1]], 1)["smape"] == 0.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=30), st.integers(1, 3), st.floats(0.1, 1e3))
@settings(deadline=None)
def test_mase_does_not_depend_on_the_unit(values, season, unit):
    series = np.array([values])
    past, future = series[:, :-3], series[:, -3:]
    if not seasonal_error(past, season)[0] > 1e-3:
        return
    one = errors([past[:, -3:]], [future], [past], season)
    scaled = errors([unit * past[:, -3:]], [unit * future], [unit * past], season)
    assert scaled["mase"] == pytest.approx(one["mase"], rel=1e-6, abs=1e-9)
    assert scaled["mae"] == pytest.approx(unit * one["mae"], rel=1e-6, abs=1e-9)
