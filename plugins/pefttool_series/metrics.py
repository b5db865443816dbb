"""Errors of forecasts, as GluonTS defines them.

GluonTS and the other keepers of MASE bring a framework with them: these are a few lines, tested against known values.
Missing values (NaN) of a future do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def array(series: Sequence[Sequence[float | None]]) -> Floats:
    """`[C, T]` float64 of channels, NaN where a value is missing."""
    import numpy as np

    return np.array(series, dtype=np.float64)


def seasonal_error(past: Floats, season: int) -> Floats:
    """`[C]`: mean |y(t) - y(t - season)| over a past: what the seasonal-naive forecast errs by there. NaN: unknown."""
    import numpy as np

    if past.shape[1] <= season:
        return np.full(past.shape[0], np.nan)
    return _mean(np.abs(past[:, season:] - past[:, :-season]))


def has_scale(past: Floats, season: int) -> bool:
    """Whether a MASE can be had in any channel of a past `[C, T]`."""
    return bool(_scales(seasonal_error(past, season)).any())


def seasonal_naive(past: Floats, season: int, horizon: int) -> Floats:
    """`[C, horizon]`: the last season of a past, repeated; a missing value is the last one known before it."""
    import numpy as np

    filled = past.copy()
    for channel in filled:
        known = np.maximum.accumulate(np.where(np.isnan(channel), 0, np.arange(len(channel))))
        channel[:] = channel[known]
    filled = np.nan_to_num(filled)
    season = min(season, past.shape[1])
    last = filled[:, -season:]
    repeated: Floats = np.tile(last, -(-horizon // season))[:, :horizon]
    return repeated


def errors(
    forecasts: Sequence[Floats], futures: Sequence[Floats], pasts: Sequence[Floats], season: int
) -> dict[str, float]:
    """mae, mse, smape (0 to 2), mase (each channel of each window by its own past's seasonal error), and the MASE of
    the seasonal-naive forecast of the same windows. A channel whose past never changes, or is no longer than a season,
    has no MASE and is left out of its mean; both are NaN where no channel is left.
    """
    import numpy as np

    off = [forecast - future for forecast, future in zip(forecasts, futures, strict=True)]
    flat = np.concatenate([o.ravel() for o in off])
    sizes = np.concatenate([(np.abs(p) + np.abs(t)).ravel() for p, t in zip(forecasts, futures, strict=True)])
    naive = [
        seasonal_naive(past, season, future.shape[1]) - future for past, future in zip(pasts, futures, strict=True)
    ]
    scales = [seasonal_error(past, season) for past in pasts]
    return {
        "mae": float(np.nanmean(np.abs(flat))),
        "mse": float(np.nanmean(flat**2)),
        "smape": float(np.nanmean(np.where(sizes > 0, 2 * np.abs(flat) / np.where(sizes > 0, sizes, 1), 0 * flat))),
        "mase": _scaled(off, scales),
        "mase_seasonal_naive": _scaled(naive, scales),
    }


def _scaled(off: Sequence[Floats], scales: Sequence[Floats]) -> float:
    """The mean of |error| / scale over channels that have both; NaN where none has."""
    import numpy as np

    each = np.concatenate([_mean(np.abs(o)) for o in off])
    scale = np.concatenate(list(scales))
    usable = np.isfinite(each) & _scales(scale)
    if not usable.any():
        return float("nan")
    return float(np.mean(each[usable] / scale[usable]))


def _scales(errors: Floats) -> NDArray[np.bool_]:
    """Which seasonal errors can be divided by."""
    import numpy as np

    return np.isfinite(errors) & (errors > 0)


def _mean(values: Floats) -> Floats:
    """Mean over time without what is missing; NaN where all is."""
    import numpy as np

    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(1)
    count = there.sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
