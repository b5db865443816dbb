"""series-forecasting: what follows, in every channel of a series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import Arranged, DataError, Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool.toolkit.columns import find_column
from pefttool_series import gaps, models, processor
from pefttool_series.reading import (
    LABEL_COLUMNS,
    OF_LONG,
    SERIES_COLUMNS,
    TIMES,
    channels,
    check_series,
    is_series,
    missing_series,
)
from pefttool_series.tensors import by_time, to_batch
from pefttool_series.windows import Cut, arrange

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool_series.processor import SeriesProcessor

FUTURE = "future"
DEFAULT_HORIZON = 24


class SeriesForecastingOptions(Options):
    series_column: str | None = Field(
        None, description=f"column with the series; default: the first of {', '.join(SERIES_COLUMNS)}"
    )
    prediction_length: int | None = Field(
        None,
        ge=1,
        description=f"values to forecast; default: as many as the rows' column {FUTURE!r} has, or {DEFAULT_HORIZON}",
    )
    context_length: int = Field(
        512, ge=1, description="most values before them that a window keeps; the model sees the last ones of them"
    )
    season: int = Field(
        1,
        ge=1,
        description="values in a season (24 for hours of days): MASE compares with repeating the last one;"
        " less than context_length",
    )
    stride: int | None = Field(
        None, ge=1, description="values between two training windows; default: a quarter of prediction_length"
    )
    gaps: Literal["split", "join"] = Field(
        "split",
        description="where a step between time stamps is more than 1.5 times the usual one (and at most one in ten is):"
        " `split`: no window crosses it, and a forecast is made of what follows the last; `join`: values are taken as"
        " if evenly spaced",
    )


class SeriesForecasting(Task):
    """What follows, in every channel of a series: a row is a long series, or a past (`series`) and its `future`."""

    name = "series-forecasting"
    Options = SeriesForecastingOptions
    primary = ("mase", "min")
    repeatable = True
    truncates = False
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:patchtst-power",
        "data": {"train": "example:power-demand"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 32, "epochs": 10}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        series = find_column(columns, None, SERIES_COLUMNS)
        if series is None or find_column(columns, None, LABEL_COLUMNS) is not None:
            return None
        if not all(is_series(v.get(series)) for v in sample):
            return None
        return f"column {series!r} (numbers), and no class"

    def recognise_model(self, config: Any) -> str | None:
        said = " ".join(getattr(config, "architectures", None) or ())
        if config.model_type == models.MODEL_TYPE and "ForPrediction" in said:
            return f"{config.model_type} forecasts series"
        return None

    def check_row(self, values: Mapping[str, Any], options: SeriesForecastingOptions) -> str | None:
        complaint = self.check_input(values, options)
        if complaint is not None:
            return complaint
        column = self._column(values, options)
        if FUTURE in values:
            return self._check_future(values, column, options)
        length, cut = len(channels(values[column])[0]), self._cut(values, options)
        complaint = gaps.complaint(values, length)
        if complaint is not None:
            return complaint
        if not cut.fits(length):
            least = cut.shortest + cut.horizon
            return f"column {column!r}: found {length} values, expected at least {least} to forecast {cut.horizon}"
        stretches = cut.stretches(values)
        if not any(cut.fits(end - begin) for begin, end in stretches):
            most = max(end - begin for begin, end in stretches)
            found = f"column {TIMES!r}: found {len(stretches) - 1} gaps, and at most {most} values between two"
            way_out = "lower task.prediction_length, or take the values as evenly spaced with -o task.gaps=join"
            return f"{found}, expected at least {cut.shortest + cut.horizon} to forecast {cut.horizon}: {way_out}"
        return None

    @staticmethod
    def _check_future(values: Mapping[str, Any], column: str, options: SeriesForecastingOptions) -> str | None:
        complaint = check_series(values[FUTURE], FUTURE)
        if complaint is not None:
            return complaint
        past, future = channels(values[column]), channels(values[FUTURE])
        if len(past) != len(future):
            return f"column {FUTURE!r}: found {len(future)} channels, expected {len(past)} as in {column!r}"
        if options.prediction_length is not None and len(future[0]) != options.prediction_length:
            wanted = f"expected {options.prediction_length} (task.prediction_length)"
            return f"column {FUTURE!r}: found {len(future[0])} values, {wanted}"
        return None

    def check_input(self, values: Mapping[str, Any], options: SeriesForecastingOptions) -> str | None:
        column = find_column(values, options.series_column, SERIES_COLUMNS)
        if column is None:
            return missing_series(values, options.series_column)
        if column == FUTURE:
            return f"column {column!r} holds what follows a series: name the series' own with -o task.series_column"
        return check_series(values[column], column)

    def settle(self, rows: Sequence[Row], options: SeriesForecastingOptions) -> SeriesForecastingOptions:
        if options.prediction_length is not None:
            return options
        futures = [channels(row.values[FUTURE])[0] for row in rows if FUTURE in row.values]
        horizon = len(futures[0]) if futures else DEFAULT_HORIZON
        return options.model_copy(update={"prediction_length": horizon})

    def reads(self, values: Mapping[str, Any], options: SeriesForecastingOptions) -> Iterable[str]:
        return (self._column(values, options), FUTURE, *OF_LONG)

    def key(self, values: Mapping[str, Any], options: SeriesForecastingOptions) -> str:
        return repr((values[self._column(values, options)], values.get(FUTURE)))

    def arrange(
        self,
        train: Sequence[Row],
        held_out: Sequence[Row] | None,
        fraction: float,
        options: SeriesForecastingOptions,
    ) -> Arranged:
        rows = [*train, *(held_out or ())]
        arranged = arrange(train, held_out, fraction, self._cut(rows[0].values if rows else {}, options))
        if train and arranged.eval:
            self._require_scale(arranged.eval, options)
        return arranged

    def _require_scale(self, judged: Sequence[Row], options: SeriesForecastingOptions) -> None:
        """Raises DataError where no held-out window has a MASE: nothing would say which checkpoint is best."""
        from pefttool_series.metrics import array, has_scale

        pasts = (array(channels(row.values[self._column(row.values, options)])) for row in judged)
        if not any(has_scale(past, options.season) for past in pasts):
            raise DataError(
                f"{judged[0].place}: none of the {len(judged)} held-out windows has a MASE to judge by: their pasts"
                f" never change from season to season, or are no longer than one (task.season: {options.season}): lower"
                " it, or hold out others with data.eval"
            )

    def _cut(self, values: Mapping[str, Any], options: SeriesForecastingOptions) -> Cut:
        horizon = options.prediction_length or DEFAULT_HORIZON
        return Cut(
            self._column(values, options),
            FUTURE,
            horizon,
            shortest=max(horizon, options.season + 1),
            longest=options.context_length,
            stride=options.stride or max(1, horizon // 4),
            split=options.gaps == "split",
        )

    def check(self, options: SeriesForecastingOptions, facts: Facts) -> list[Problem]:
        if options.season < options.context_length:
            return []
        short = f"{options.season} is not less than task.context_length ({options.context_length})"
        way_out = "raise task.context_length above it, or lower task.season"
        return [Problem("task.season", f"{short}: no window would hold more than a season, as MASE needs: {way_out}")]

    def fit(self, rows: Sequence[Row], options: SeriesForecastingOptions) -> Mapping[str, Any]:
        return processor.fit(rows, self._column(rows[0].values, options))

    @staticmethod
    def _column(values: Mapping[str, Any], options: SeriesForecastingOptions) -> str:
        return find_column(values, options.series_column, SERIES_COLUMNS) or SERIES_COLUMNS[0]

    def load(self, source: Any, setting: Setting) -> Loaded:
        config, options = source.config, setting.options
        models.check_type(config, self.name)
        if config.context_length > options.context_length:
            raise ModelError(
                f"task.context_length: {options.context_length} is less than the {config.context_length} values that"
                f" the model looks at; use {config.context_length} or more"
            )
        # A forecaster that looks further than asked keeps its head: the first values of its forecast are taken.
        pretrained = "ForPrediction" in " ".join(config.architectures or ()) and config.loss == "mse"
        enough = pretrained and config.prediction_length >= (options.prediction_length or 1)
        horizon = config.prediction_length if enough else options.prediction_length or DEFAULT_HORIZON
        prepared = processor.make(
            config,
            setting.fitted,
            dataset_statistics=not config.scaling,
            prediction_length=options.prediction_length or horizon,
        )
        model = models.load(source, "PatchTSTForPrediction", prepared.channels, prediction_length=horizon, loss="mse")
        return Loaded(model, prepared)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return ("head",)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        return model.get_submodule("model"), model.get_submodule("head")

    def encode(self, row: Row, processor: SeriesProcessor, setting: Setting) -> dict[str, Any]:
        encoded = self._encode_past(row, processor, setting)
        if FUTURE not in row.values:
            raise DataError(f"{row.place}: found no column {FUTURE!r}, expected the values that follow the series")
        future = [value for channel in channels(row.values[FUTURE]) for value in channel]
        known = [0 if value is None or value != value else 1 for value in future]
        encoded["future"] = [float(v) if k and v is not None else 0.0 for v, k in zip(future, known, strict=True)]
        encoded["known"] = known
        encoded["weight"] = encoded["trained"] = sum(known)
        return encoded

    def _encode_past(self, row: Row, processor: SeriesProcessor, setting: Setting) -> dict[str, Any]:
        column = self._column(row.values, setting.options)
        begin = self._cut(row.values, setting.options).stretches(row.values)[-1][0]
        if begin:
            since = [list(channel[begin:]) for channel in channels(row.values[column])]
            row = Row({**row.values, column: since}, row.file, row.line)
        window = processor.window(row, column)
        return {
            "values": window.values,
            "observed": window.observed,
            "padded": window.padded,
            "length": processor.patches,
            "truncated": False,  # a window keeps more of the past than most models look at
        }

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        """A row of one constant: `collate` knows how many values a window has, whatever `length` says."""
        row = {"values": [0.0], "observed": [1], "padded": 0, "length": length, "truncated": False}
        return {**row, "future": [0.0], "known": [1], "weight": 1, "trained": 1}

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: SeriesProcessor, setting: Setting
    ) -> dict[str, Tensor]:
        batch = to_batch(examples, processor)
        if FUTURE in examples[0]:
            horizon = processor.prediction_length
            batch["future_values"] = by_time([e["future"] for e in examples], processor.channels, horizon)
            batch["future_observed_mask"] = by_time([e["known"] for e in examples], processor.channels, horizon)
        if processor.means:
            batch["means"], batch["stds"] = (self._statistic(s) for s in (processor.means, processor.stds))
        return batch

    @staticmethod
    def _statistic(values: Sequence[float]) -> Tensor:
        import torch

        return torch.tensor(values, dtype=torch.float32).view(1, 1, -1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Huber loss of errors in units of each window's own deviation: a window in which hardly anything happened,
        before a jump, would decide on everything with squares."""
        from torch.nn.functional import smooth_l1_loss

        forecast, scale = self._forecast(model, batch, setting)
        known = batch["future_observed_mask"]
        off = smooth_l1_loss(forecast / scale, batch["future_values"] / scale, reduction="none")
        return Loss((off * known).sum(), known.sum(), forecast.detach())

    @staticmethod
    def _forecast(model: Any, batch: Mapping[str, Tensor], setting: Setting) -> tuple[Tensor, Tensor]:
        """(forecast, scale): `[B, H, C]` in the units of the data, and `[B, 1, C]` or `[1, 1, C]`."""
        outputs = model(past_values=batch["past_values"], past_observed_mask=batch["past_observed_mask"])
        forecast = outputs.prediction_outputs.float()[:, : setting.options.prediction_length]
        if "means" in batch:
            return forecast * batch["stds"] + batch["means"], batch["stds"]
        return forecast, outputs.scale.float().detach()

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        return [{"forecast": forecast} for forecast in outputs.float().transpose(1, 2).tolist()]

    def predict(
        self, model: nn.Module, rows: Sequence[Row], processor: SeriesProcessor, setting: Setting
    ) -> list[dict[str, Any]]:
        from pefttool.nn import embedding_offload

        device = embedding_offload.device_of(model)
        batch = self.collate([self._encode_past(r, processor, setting) for r in rows], processor, setting)
        forecast, _ = self._forecast(model, {k: v.to(device) for k, v in batch.items()}, setting)
        return self.decode(forecast, setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from pefttool_series.metrics import array, errors

        column = self._column(rows[0].values, setting.options)
        found = errors(
            [array(p["forecast"]) for p in predictions],
            [array(channels(row.values[FUTURE])) for row in rows],
            [array(channels(row.values[column])) for row in rows],
            setting.options.season,
        )
        return {**found, "loss": loss}

    def preview(self, example: Mapping[str, Any], processor: SeriesProcessor) -> str:
        padded = f", {example['padded']} of them padding" if example["padded"] else ""
        size = f"{processor.channels} channels of {processor.context_length} values{padded}"
        horizon = len(example["future"]) // processor.channels
        return f"{size}, {processor.patches} patches each -> {horizon} values each"
