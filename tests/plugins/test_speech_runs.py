"""Whole runs of speech-recognition on tiny models: every adapter, cached features, the plan, reloading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import frozen_runs as runs
import pytest
import samples_audio

from pefttool.api.errors import DataError, Refused
from pefttool.api.values import Row
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.export.reload import reload
from pefttool.forecast import forecast
from pefttool.setup import plan
from pefttool.testing.speech_models import tiny_ctc, tiny_speech

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = "speech-recognition"
TEXTS = ("ab", "abe", "bead", "a", "bad", "ebb", "dab", "bed", "add", "be", "deaf", "fade")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"whisper": tiny_speech(root / "whisper"), "ctc": tiny_ctc(root / "ctc")}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A table beside its recordings, which it names by paths relative to itself."""
    lines = []
    for i, text in enumerate(TEXTS):
        samples_audio.write_tones(tmp_path / "wav" / f"{i}.wav", samples_audio.tones(text))
        lines.append(json.dumps({"audio": f"wav/{i}.wav", "text": text}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("kind", ["whisper", "ctc"])
@pytest.mark.parametrize("adapter", ["lora", "prefix", "head", "full"])
def test_every_adapter_trains_and_answers_again_after_reloading(
    registry: Registry, models: dict[str, Path], rows: Path, tmp_path: Path, kind: str, adapter: str
) -> None:
    seen = runs.fine_tune(registry, tmp_path / "run", models[kind], rows, TASK, adapter, train__rehearse=True)
    assert {"wer", "cer", "wer_as_written", "cer_as_written", "loss"} == set(seen.after)
    # Four steps of a prefix move a tiny random model anywhere; what it trains is asked for by the adapter's own tests.
    assert adapter == "prefix" or seen.after["loss"] < seen.before["loss"]
    memory = json.loads((tmp_path / "run" / "metrics.json").read_text())["memory"]
    measured, simulated = memory["measured_bytes"], memory["simulated_bytes"]
    if adapter in ("lora", "full"):  # with kept features the frozen part does not run, as the plan has it
        # Convolutions over samples are most of a tiny CTC model, and what they allocate inside is not simulated.
        off = {"whisper": 0.05, "ctc": 0.15}[kind]
        assert abs(simulated - measured) <= off * measured
    again = reload(tmp_path / "run", registry)
    row = Row({"audio": str(tmp_path / "wav" / "3.wav")})
    answers = [again.predict([row]) for _ in range(2)]
    assert answers[0] == answers[1] and list(answers[0][0]) == ["text"]


@pytest.mark.parametrize("kind", ["whisper", "ctc"])
def test_training_on_kept_features_is_the_same_training(
    registry: Registry, models: dict[str, Path], rows: Path, tmp_path: Path, kind: str
) -> None:
    def run(name: str, cache: bool) -> runs.Seen:
        return runs.fine_tune(
            registry, tmp_path / name, models[kind], rows, TASK, data__cache=cache, train__optimizer="sgd"
        )

    without, first = run("without", False), run("first", True)
    assert "features" in first.progressed()
    assert runs.worst(first, without) <= 2e-6
    assert first.after == pytest.approx(without.after, rel=2e-6)


@pytest.mark.parametrize(("targets", "heard_once"), [("auto", True), ("all-linear", False), ("*.encoder.*", False)])
def test_whispers_encoder_hears_each_recording_once_unless_it_is_asked_to_learn(
    registry: Registry, models: dict[str, Path], rows: Path, tmp_path: Path, targets: str, heard_once: bool
) -> None:
    seen = runs.fine_tune(
        registry, tmp_path / "run", models["whisper"], rows, TASK, "lora", adapter__target_modules=targets
    )
    assert ("features" in seen.progressed()) == heard_once


@pytest.mark.parametrize("kind", ["whisper", "ctc"])
def test_a_model_can_be_planned_without_data(registry: Registry, models: dict[str, Path], kind: str) -> None:
    given = {"model": str(models[kind]), "adapter": {"name": "lora"}, "device": "cpu", "train": {"batch_size": 2}}
    planned = plan.make(recipe.resolve(given, registry, data_optional=True), registry)
    assert planned.task.name == TASK
    assert forecast.make(planned).estimate.peak_bytes > 0


def test_another_recording_under_the_same_name_is_heard_anew(
    registry: Registry, models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """What is kept depends on what the files hold, not on what they are called."""
    first = runs.fine_tune(registry, tmp_path / "first", models["ctc"], rows, TASK)
    for i, text in enumerate(TEXTS):
        samples_audio.write_tones(tmp_path / "wav" / f"{i}.wav", samples_audio.tones(text[::-1]))
    second = runs.fine_tune(registry, tmp_path / "second", models["ctc"], rows, TASK)
    assert "features" in second.progressed() and first.losses != second.losses


def test_a_bad_recording_is_told_by_table_line_and_file(
    registry: Registry, models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "wav" / "2.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: column 'audio': found .*2\.wav'.* no recording"):
        runs.fine_tune(registry, tmp_path / "run", models["ctc"], rows, TASK)


def test_longer_windows_than_whisper_has_are_refused(registry: Registry, models: dict[str, Path], rows: Path) -> None:
    given: dict[str, Any] = {
        "model": str(models["whisper"]),
        "adapter": {"name": "lora"},
        "task": {"name": TASK, "max_seconds": 60},
        "data": {"train": str(rows)},
        "device": "cpu",
    }
    with pytest.raises(Refused, match=r"task\.max_seconds: 60: Whisper hears 30 s"):
        plan.make(recipe.resolve(given, registry), registry)


def test_answers_may_be_long_without_being_asked(registry: Registry) -> None:
    given = {"model": "m", "adapter": {"name": "lora"}, "task": {"name": TASK}, "data": {"train": "rows"}}
    assert recipe.resolve(given, registry).generation.max_new_tokens == 444
    assert recipe.resolve({**given, "generation": {"max_new_tokens": 9}}, registry).generation.max_new_tokens == 9
    assert recipe.resolve({**given, "task": {"name": "chat"}}, registry).generation.max_new_tokens == 64
