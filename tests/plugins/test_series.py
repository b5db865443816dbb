"""series-classification and series-forecasting: what is theirs, what they see of a series, and that they learn."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from samples_series import HORIZON, wave
from transformers import PatchTSTConfig, PatchTSTForPrediction, PatchTSTModel

from pefttool.api.errors import DataError, ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe as recipes
from pefttool.config import registry as registries
from pefttool.inference.predictor import inference
from pefttool.models.pretrained import LocalPretrained
from pefttool.run import run
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.setup.plan import make
from pefttool.testing.bench import CPU
from pefttool.testing.models import model_folder
from pefttool_series.classification import SeriesClassification
from pefttool_series.forecasting import SeriesForecasting
from pefttool_series.norms import StillBatchNorm
from pefttool_series.processor import SeriesProcessor, fit

CLASSIFY, FORECAST = SeriesClassification(), SeriesForecasting()
REGISTRY = registries.build()


def setting_for(task: Any, rows: list[Row], **options: Any) -> Setting:
    chosen = task.Options(**options)
    return Setting(chosen, labels=task.labels(rows, chosen), fitted=task.fit(rows, chosen))


def loaded(task: Any, setting: Setting, folder: Path | None = None) -> tuple[Any, SeriesProcessor]:
    where = folder or model_folder("series")
    read = load_model(Loading(where, task, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor = read.model, read.processor
    return model, processor


def test_each_recognises_its_own_rows_only() -> None:
    labelled, plain = {"series": [[1, 2.5]], "label": "a"}, {"series": [1, 2, None]}
    assert CLASSIFY.recognise(list(labelled), [labelled]) == "columns 'series' (numbers) and 'label' (class)"
    assert CLASSIFY.recognise(list(plain), [plain]) is None
    assert FORECAST.recognise(list(plain), [plain]) == "column 'series' (numbers), and no class"
    assert FORECAST.recognise(list(labelled), [labelled]) is None
    large = {"series": [1, 1e30, -math.inf]}  # a bad row, and of this task
    assert FORECAST.recognise(list(large), [large]) and CLASSIFY.recognise([*large, "label"], [{**large, "label": "a"}])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"label": "a"}, "expected one of 'series', 'values', 'signal'"),
        ({"series": "1 2", "label": "a"}, "column 'series': found '1 2', expected a list of numbers"),
        ({"series": [[1, 2], 3], "label": "a"}, "found numbers beside lists"),
        ({"series": [[1, 2], [3]], "label": "a"}, "found channels of 1 to 2 values, expected one length"),
        ({"series": [[1, "2"]], "label": "a"}, "channel 0, value 1: found '2', expected a number"),
        ({"series": [1, True], "label": "a"}, "value 1: found True"),
        ({"series": [None, math.nan], "label": "a"}, "expected at least one number among them"),
        ({"series": [1, 1e39], "label": "a"}, "expected a number that float32 holds"),
        (
            {"series": [1, -1e30], "label": "a"},
            "value 1: found -1e+30, expected a number that float32 holds, and its sq",
        ),
        ({"series": [1, 10**400], "label": "a"}, "expected a number that float32 holds"),
        ({"series": [1, 2]}, "-o task.label_column=COLUMN"),
        ({"series": [1, 2], "label": 0.5}, "column 'label': found 0.5"),
    ],
)
def test_bad_rows_say_what_was_found(values: dict[str, Any], complaint: str) -> None:
    assert complaint in (CLASSIFY.check_row(values, CLASSIFY.Options()) or "")


def test_a_series_to_forecast_needs_room_for_past_and_future() -> None:
    options = FORECAST.Options(prediction_length=4, season=6)
    assert FORECAST.check_row({"series": wave(11, 5)}, options) is None
    assert "found 10 values, expected at least 11" in (FORECAST.check_row({"series": wave(10, 5)}, options) or "")
    good = {"series": [1, 2], "future": [1, 2, None, 3]}
    assert FORECAST.check_row(good, options) is None
    assert "found 2 values, expected 4" in (FORECAST.check_row({**good, "future": [1, 2]}, options) or "")
    assert "found 2 channels, expected 1" in (FORECAST.check_row({**good, "future": [[1] * 4] * 2}, options) or "")


def test_a_window_is_the_end_of_the_series_and_padding_does_not_count() -> None:
    look = SeriesProcessor(context_length=4, channels=2, patches=1)
    longer = look.window(Row({"series": [[9, 1, 2, 3, 4], [9, 5, None, 7, 8]]}), "series")
    assert longer.values == [1, 2, 3, 4, 5, pytest.approx(20 / 3), 7, 8]
    assert longer.observed == [1, 1, 1, 1, 1, 0, 1, 1] and (longer.padded, longer.cropped) == (0, 1)
    shorter = look.window(Row({"series": [[2, 4], [1, math.nan]]}), "series")
    assert shorter.values == [3, 3, 2, 4, 1, 1, 1, 1]
    assert shorter.observed == [0, 0, 1, 1, 0, 0, 1, 0] and (shorter.padded, shorter.cropped) == (2, 0)


def test_statistics_are_of_each_channel_and_of_training_rows_alone() -> None:
    found = fit([Row({"series": [[1, 3], [5, 5]]}), Row({"series": [[None, 5], [5, 5]]})], "series")
    assert found["channels"] == 2 and found["means"] == [3.0, 5.0]
    assert found["stds"] == [pytest.approx(math.sqrt(8 / 3)), 1.0]  # a channel that never changes is not blown up
    look = SeriesProcessor(2, 2, 1, tuple(found["means"]), tuple(found["stds"]))
    assert look.window(Row({"series": [[3, 3], [6, 5]]}), "series").values == [0, 0, 1, 0]


def test_rows_with_other_channels_are_refused_by_their_place() -> None:
    rows = [Row({"series": [1, 2]}, "a.jsonl", 1), Row({"series": [[1, 2], [3, 4]]}, "a.jsonl", 2)]
    with pytest.raises(DataError, match=r"a.jsonl:2: column 'series': found 2 channels, expected 1 as in a.jsonl:1"):
        fit(rows, "series")
    with pytest.raises(DataError, match=r"a.jsonl:2: .*found 2 channels, expected 1 as in the training rows"):
        SeriesProcessor(2, 1, 1).window(rows[1], "series")


@pytest.mark.parametrize("scaling", ["model", "dataset"])
def test_padding_changes_nothing_where_the_model_scales(scaling: str) -> None:
    """The mean in front is what the model makes zeros of; statistics are of what was observed."""
    rows = [Row({"series": [wave(32, 8), wave(32, 5)], "label": name}) for name in "ab"]
    setting = setting_for(CLASSIFY, rows, scaling=scaling)
    model, look = loaded(CLASSIFY, setting)
    short = Row({"series": [wave(20, 8), wave(20, 5)], "label": "a"})
    window = CLASSIFY.encode(short, look, setting)
    values, seen = torch.tensor(window["values"]).view(2, 32), torch.tensor(window["observed"]).view(2, 32)
    assert seen[:, :12].sum() == 0 and bool(seen[:, 12:].all())
    for channel in values:
        assert torch.allclose(channel[:12], channel[12:].mean().expand(12), atol=1e-6)
    with inference(model, CPU):
        (alone,) = CLASSIFY.predict(model, [short], look, setting)
        together = CLASSIFY.predict(model, [short, rows[0]], look, setting)
    assert alone["scores"] == pytest.approx(together[0]["scores"], abs=1e-6)
    assert (model.config.scaling is None) == (scaling == "dataset")


def test_amplitude_tells_classes_apart_by_default() -> None:
    rows = [Row({"series": [[a * v for v in wave(32, 8)]] * 2, "label": str(a)}) for a in (1, 5)]
    setting = setting_for(CLASSIFY, rows)
    model, look = loaded(CLASSIFY, setting)
    with inference(model, CPU):
        one, other = CLASSIFY.predict(model, rows, look, setting)
    assert one["scores"] != pytest.approx(other["scores"], abs=1e-3)


def test_every_label_reaches_the_loss() -> None:
    rows = [Row({"series": [wave(32, 8)] * 2, "label": name}) for name in ("10", "9", "x")]
    setting = setting_for(CLASSIFY, rows)
    model, look = loaded(CLASSIFY, setting)
    assert setting.labels == ("10", "9", "x") and model.head.linear.out_features == 3
    losses = []
    for row in rows:
        batch = CLASSIFY.collate([CLASSIFY.encode(row, look, setting)], look, setting)
        losses.append(float(CLASSIFY.loss(model, batch, setting).sum.detach()))
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0)


def test_two_classes_are_ranked_too() -> None:
    setting = Setting(CLASSIFY.Options(), labels=("fails", "runs"))
    rows = [Row({"series": [1], "label": v}) for v in ("runs", "fails", "runs", "fails")]
    given = [{"label": "runs", "scores": {"fails": 1 - p, "runs": p}} for p in (0.9, 0.6, 0.55, 0.1)]
    found = CLASSIFY.metrics(given, rows, 0.5, setting)
    assert found["accuracy"] == 0.5 and found["auroc"] == 0.75
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    turned = CLASSIFY.metrics(given, rows, 0.5, Setting(CLASSIFY.Options(positive_label="fails"), ("fails", "runs")))
    assert turned["auprc"] == pytest.approx((1 + 2 / 3) / 2) and turned["auroc"] == 0.75
    assert "auroc" not in CLASSIFY.metrics(given[:1], rows[:1], 0.5, setting)  # one class alone cannot be ranked
    with pytest.raises(DataError, match="'on' is no class of the training rows"):
        CLASSIFY.labels(rows, CLASSIFY.Options(positive_label="on"))


def test_batch_norms_keep_their_statistics_while_all_else_trains() -> None:
    rows = [Row({"series": [wave(32, 8)] * 2, "label": name}) for name in "ab"]
    setting = setting_for(CLASSIFY, rows)
    model, look = loaded(CLASSIFY, setting)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms and all(isinstance(m, StillBatchNorm) for m in norms)
    before = [m.running_mean.clone() for m in norms]
    batch = CLASSIFY.collate([CLASSIFY.encode(r, look, setting) for r in rows], look, setting)
    model.train()
    CLASSIFY.loss(model, batch, setting).sum.backward()
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    assert all(m.batchnorm.weight.grad is not None for m in model.modules() if type(m).__name__ == "PatchTSTBatchNorm")


def test_models_that_do_not_fit_are_refused_with_the_next_step(tmp_path: Path) -> None:
    setting = Setting(CLASSIFY.Options())
    with pytest.raises(ModelError, match=r"needs a PatchTST .* and this is 'bert'"):
        CLASSIFY.load(LocalPretrained(model_folder("encoder"), abstract=True), setting)
    apart = PatchTSTConfig(num_input_channels=3, share_embedding=False, context_length=32, patch_length=8, d_model=16)
    PatchTSTModel(apart).save_pretrained(tmp_path / "apart")
    rows = [Row({"series": [wave(32, 8)], "label": name}) for name in "ab"]
    with pytest.raises(ModelError, match="its 3 channels by weights of its own"):
        CLASSIFY.load(LocalPretrained(tmp_path / "apart", abstract=True), setting_for(CLASSIFY, rows))
    with pytest.raises(ModelError, match="use 32 or more"):
        options = FORECAST.Options(context_length=16)
        FORECAST.load(LocalPretrained(model_folder("series"), abstract=True), Setting(options))


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks at 16 values of one channel, and forecasts 6."""
    folder = tmp_path_factory.mktemp("forecaster")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = PatchTSTConfig(
        context_length=16, prediction_length=6, patch_length=4, patch_stride=4, norm_type="layernorm", **sizes
    )
    PatchTSTForPrediction(config).save_pretrained(folder)
    return folder


def test_a_pretrained_forecaster_keeps_its_head_for_shorter_forecasts_and_more_channels(forecaster: Path) -> None:
    rows = [Row({"series": [wave(16, 5), wave(16, 7, 1.0)], "future": [wave(4, 5), wave(4, 7)]})]
    setting = setting_for(FORECAST, rows, prediction_length=4)
    model, look = loaded(FORECAST, setting, forecaster)
    plain = PatchTSTForPrediction.from_pretrained(forecaster).eval()
    with inference(model, CPU):
        (answer,) = FORECAST.predict(model, rows, look, setting)
    for number, channel in enumerate(rows[0].values["series"]):
        with torch.no_grad():
            expected = plain(past_values=torch.tensor(channel).view(1, 16, 1)).prediction_outputs[0, :4, 0]
        assert answer["forecast"][number] == pytest.approx(expected.tolist(), abs=1e-5)
    longer = setting_for(FORECAST, rows, prediction_length=8)
    assert loaded(FORECAST, longer, forecaster)[0].head.projection.out_features == 8


def test_unknown_values_of_a_future_do_not_count(forecaster: Path) -> None:
    known = Row({"series": wave(16, 5), "future": [1.0, 2.0, 3.0, 4.0]})
    gap = Row({"series": wave(16, 5), "future": [1.0, None, 3.0, math.nan]})
    setting = setting_for(FORECAST, [known], prediction_length=4)
    model, look = loaded(FORECAST, setting, forecaster)
    found = []
    for row in (known, gap):
        example = FORECAST.encode(row, look, setting)
        loss = FORECAST.loss(model, FORECAST.collate([example], look, setting), setting)
        assert float(loss.weight) == example["weight"]
        found.append((example["weight"], float(loss.sum.detach())))
    assert [weight for weight, _ in found] == [4, 2] and found[1][1] < found[0][1]


def test_without_scaling_of_its_own_a_forecaster_gets_that_of_the_training_rows(tmp_path: Path) -> None:
    config = PatchTSTConfig(context_length=16, prediction_length=4, patch_length=4, patch_stride=4, d_model=16)
    config.scaling = None
    PatchTSTForPrediction(config).save_pretrained(tmp_path)
    rows = [Row({"series": [1000 + 50 * v for v in wave(16, 5)], "future": [1000.0] * 4})]
    setting = setting_for(FORECAST, rows, prediction_length=4)
    model, look = loaded(FORECAST, setting, tmp_path)
    with inference(model, CPU):
        (answer,) = FORECAST.predict(model, rows, look, setting)
    assert all(700 < value < 1300 for value in answer["forecast"][0])


def tuned(tmp_path: Path, task: str, rows: list[dict[str, Any]], model: Path, **changes: Any) -> Any:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    document = {
        "model": str(model),
        "adapter": {"name": changes.pop("adapter", "lora")},
        "task": {"name": task, **changes.pop("options", {})},
        "data": {"train": str(data), "cache": False},
        "train": changes,
        "device": "cpu",
        "out": str(tmp_path / "run"),
    }
    return run(recipes.resolve(document, REGISTRY), REGISTRY)


def test_a_tiny_run_learns_to_classify_and_reloads(tmp_path: Path, forecaster: Path) -> None:
    from pefttool.export.reload import reload

    draws = random.Random(0)
    rows = [
        {"series": [wave(draws.randrange(20, 40), period, draws.random() * 6) for _ in range(1)], "label": label}
        for _ in range(40)
        for label, period in (("fast", 4), ("slow", 16))
    ]
    done = tuned(tmp_path, "series-classification", rows, forecaster, adapter="full", learning_rate=3e-3, epochs=15)
    assert done.after["accuracy"] >= 0.85 and done.after["loss"] < done.before["loss"]
    again = reload(tmp_path / "run", REGISTRY, "cpu")
    assert again.setting.fitted["channels"] == 1 and again.processor.means
    assert json.loads((again.folder / "series_processor.json").read_text())["channels"] == 1
    chosen = [Row({"series": sample["row"]["series"]}) for sample in done.samples]
    answers = again.predict(chosen)
    assert [a["label"] for a in answers] == [sample["after"]["label"] for sample in done.samples]


def test_a_tiny_run_learns_to_forecast_a_long_series(tmp_path: Path, forecaster: Path) -> None:
    rows = [{"series": [20 + 3 * v for v in wave(300, 8)]}]
    options = {"prediction_length": 4, "season": 1}
    done = tuned(tmp_path, "series-forecasting", rows, forecaster, options=options, epochs=15)
    assert done.after["mase"] < 0.6 * done.before["mase"]
    assert done.after["mase"] < done.after["mase_seasonal_naive"]


@pytest.mark.parametrize("adapter", ["lora", "head", "full", "prefix"])
@pytest.mark.parametrize("task", ["series-classification", "series-forecasting"])
def test_plans_are_made_without_data(adapter: str, task: str) -> None:
    from pefttool.forecast import forecast

    given = {"model": str(model_folder("series")), "adapter": adapter, "task": task, "device": "cpu"}
    planned = make(recipes.resolve(given, REGISTRY, data_optional=True), REGISTRY)
    assert forecast.make(planned).estimate.peak_bytes > 10_000
    assert planned.facts.head_modules == ("head",) and planned.facts.linear_modules
