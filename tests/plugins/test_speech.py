"""speech-recognition: what is written, what is trained, what is measured; Whisper and CTC."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import samples_audio
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples_audio import tones, write_tones

from pefttool.api.errors import ModelError, UsageError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing import check_task
from pefttool.testing.speech_models import tiny_ctc, tiny_speech
from pefttool.toolkit.columns import describe
from pefttool_audio import ctc, word_errors
from pefttool_audio.listener import IGNORE
from pefttool_audio.recognition import SpeechRecognition

TASK = SpeechRecognition()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "whisper": tiny_speech(root / "whisper"),
        "languages": tiny_speech(root / "languages", languages=True),
        "ctc": tiny_ctc(root / "ctc"),
        "group": tiny_ctc(root / "group", norm="group"),
    }


def loaded(folder: Path, **options: Any) -> tuple[Any, Any, Setting]:
    setting = Setting(TASK.Options(**options), generation={"max_new_tokens": 5, "do_sample": False})
    read = load_model(Loading(folder, TASK, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor, missing = read.model, read.processor, read.missing
    assert not missing
    return model, processor, setting


def row(folder: Path, text: str, name: str = "a.wav") -> Row:
    return Row({"audio": write_tones(folder / name, tones(text)), "text": text})


# Rows


def test_rows_are_recognised_by_the_suffix_of_what_they_name() -> None:
    good = {"path": "clips/a.mp3", "sentence": "hello"}
    assert TASK.recognise(list(good), [good]) == "columns 'path' (recordings) and 'sentence' (transcripts)"
    for values in ({"path": "a.txt", "sentence": "x"}, {"audio": "a.wav"}, {"text": "x"}, {"audio": 3, "text": "x"}):
        assert TASK.recognise(list(values), [values]) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text": " "}, "column 'text': found ' ', expected what is said"),
        ({"text": None}, "column 'text': found None"),
        ({"audio": 7}, "column 'audio': found 7, expected the path"),
        ({"audio": "none.wav"}, "no such file"),
    ],
)
def test_bad_rows_say_what_was_found(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    values = {**row(tmp_path, "abc").values, **changes}
    assert complaint in (TASK.check_row(values, TASK.Options()) or "")


def test_too_long_recordings_are_bad_rows(tmp_path: Path) -> None:
    values = row(tmp_path, "abc").values
    complaint = TASK.check_row(values, TASK.Options(max_seconds=0.2))
    assert complaint is not None and "found 0.3 s" in complaint and "task.max_seconds" in complaint
    assert TASK.check_row(values, TASK.Options(max_seconds=0.3)) is None
    whisper = Facts(architecture="WhisperForConditionalGeneration", model_type="whisper")
    assert [p.key for p in TASK.check(TASK.Options(max_seconds=40), whisper)] == ["task.max_seconds"]


def test_a_recording_that_cannot_be_read_to_its_end_is_a_bad_row(tmp_path: Path) -> None:
    half, gap = tmp_path / "half.flac", tmp_path / "gap.wav"
    soundfile.write(half, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    half.write_bytes(half.read_bytes()[:20_000])
    soundfile.write(gap, np.array([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    for path, complaint in ((half, "cannot be read to its end"), (gap, "holds samples that are not numbers")):
        assert f"column 'audio': found {describe(str(path))}: {complaint}" in str(
            TASK.check_row({"audio": str(path), "text": "a"}, TASK.Options())
        )


def test_a_path_is_relative_to_the_table_that_names_it(tmp_path: Path) -> None:
    absolute = write_tones(tmp_path / "clips" / "a.wav", [440.0])
    given = Row({"audio": "clips/a.wav", "text": "a"}, str(tmp_path / "train.csv"), 2)
    located = TASK.locate(given, TASK.Options())
    assert located.values["audio"] == absolute and located.line == 2
    assert TASK.files(located.values, TASK.Options()) == (absolute,)
    assert TASK.locate(Row({"audio": absolute, "text": "a"}, "x.csv"), TASK.Options()).values["audio"] == absolute


def test_speech_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = TASK.check(TASK.Options(), Facts(architecture=""))
    assert 'pip install "pefttool[audio]"' in problem.message and "soundfile" in problem.message


# Whisper


def test_english_labels_follow_the_prompt_and_end(folders: dict[str, Path], tmp_path: Path) -> None:
    _, processor, setting = loaded(folders["whisper"])
    example = TASK.encode(row(tmp_path, "abc"), processor, setting)
    batch = TASK.collate([example, TASK.encode(row(tmp_path, "a", "b.wav"), processor, setting)], processor, setting)
    names = processor.tokenizer.convert_ids_to_tokens
    assert names(batch["decoder_input_ids"][0].tolist()) == [
        "<|startoftranscript|>", "<|notimestamps|>", "a", "b", "c"
    ]  # fmt: skip
    assert batch["labels"][0, 0] == IGNORE  # the prompt is given, not learnt
    assert names(batch["labels"][0, 1:].tolist()) == ["a", "b", "c", "<|endoftext|>"]
    assert batch["labels"][1].tolist()[3:] == [IGNORE, IGNORE]
    assert example["weight"] == example["trained"] == 4
    assert example["length"] == 50 + 5


def test_languages_are_prompted_for_and_generated_after(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["languages"], language="German")
    batch = TASK.collate([TASK.encode(row(tmp_path, "a"), processor, setting)], processor, setting)
    prompt = processor.tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0].tolist())
    assert prompt == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>", "a"]
    assert batch["labels"][0, :3].tolist() == [IGNORE] * 3
    seen: list[list[int]] = []
    hook = model.model.decoder.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    TASK.predict(model, [row(tmp_path, "a")], processor, setting)
    hook.remove()
    assert processor.tokenizer.convert_ids_to_tokens(seen[0]) == prompt[:4]
    assert len(seen) == 5  # one call for the prompt, which gives a token, and one for each more


def test_a_language_is_asked_for_where_there_are_many(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="hears many languages"):
        loaded(folders["languages"])
    with pytest.raises(UsageError, match="'klingon' is no language"):
        loaded(folders["languages"], language="klingon")
    with pytest.raises(UsageError, match="hears English only"):
        loaded(folders["whisper"], language="de")
    loaded(folders["whisper"], language="en")


def test_the_loss_is_transformers_own(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["whisper"])
    batch = TASK.collate([TASK.encode(row(tmp_path, "abc"), processor, setting)], processor, setting)
    ours = TASK.loss(model, batch, setting)
    # transformers' loss is a mean, and trains what it is given: here the same tokens, by the inputs that we make.
    theirs = model(
        input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"], labels=batch["labels"]
    )
    assert float(ours.sum.detach()) == pytest.approx(4 * float(theirs.loss.detach()), rel=1e-5)
    assert int(ours.weight) == 4


def test_every_label_reaches_the_loss(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["whisper"])
    batch = TASK.collate([TASK.encode(row(tmp_path, "abc"), processor, setting)], processor, setting)
    before = float(TASK.loss(model, batch, setting).sum.detach())
    for position in range(1, 5):
        changed = {**batch, "labels": batch["labels"].clone()}
        changed["labels"][0, position] = 7
        assert float(TASK.loss(model, changed, setting).sum.detach()) != before, position


def test_what_the_model_cannot_hear_or_write_is_told_with_its_limit(folders: dict[str, Path], tmp_path: Path) -> None:
    _, processor, setting = loaded(folders["whisper"])
    long = TASK.encode(row(tmp_path, "abcabcabcabc"), processor, setting)
    assert "a recording of 1.2 s, and the model hears 1 s" in (TASK.check_encoded(long, processor) or "")
    wordy = TASK.encode(Row({**row(tmp_path, "a").values, "text": "a" * 100}), processor, setting)
    assert "101 tokens, and the model writes 95" in (TASK.check_encoded(wordy, processor) or "")


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from pefttool_audio.whisper import Whisper

    model, processor, _ = loaded(folders["whisper"])
    config = copy.deepcopy(model.config)
    config.decoder_start_token_id = 3
    with pytest.raises(ModelError, match="do not fit"):
        Whisper(processor.processor, config, None)


def test_answers_may_be_as_long_as_the_model_writes(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["whisper"])
    endless = replace(setting, generation={"max_new_tokens": 444, "do_sample": False})
    model.generation_config.suppress_tokens = [processor.tokenizer.eos_token_id]
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1

    hook = model.model.decoder.register_forward_pre_hook(step)
    TASK.predict(model, [row(tmp_path, "a")], processor, endless)
    hook.remove()
    assert count == 96 - 2


# CTC


def test_ctc_keeps_the_contract(tmp_path: Path) -> None:
    check_task(TASK, samples_audio.spoken(tmp_path), kind="ctc")


def test_letters_are_in_the_case_that_the_model_knows(folders: dict[str, Path]) -> None:
    _, processor, _ = loaded(folders["ctc"])
    ids = processor.written("It's  a, 9!")["labels"]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["I", "T", "'", "S", "|", "A", "|"]


def test_the_loss_and_the_frames_are_transformers_own(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("ctc", "group"):
        model, processor, setting = loaded(folders[kind])
        example = TASK.encode(row(tmp_path, "abbac"), processor, setting)
        batch = TASK.collate([example], processor, setting)
        model.config.ctc_loss_reduction = "sum"
        theirs = model(input_values=batch["input_values"], labels=batch["labels"])
        ours = TASK.loss(model, batch, setting)
        assert float(ours.sum.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-5)
        assert example["length"] == theirs.logits.shape[1]
        assert int(ours.weight) == example["weight"] == 5


def test_a_group_norm_hears_a_row_alike_beside_a_longer_one(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["group"])
    short, long = (TASK.encode(row(tmp_path, t, f"{t}.wav"), processor, setting) for t in ("ab", "abcdefab"))
    together = TASK.loss(model, TASK.collate([short, long], processor, setting), setting)
    alone = [TASK.loss(model, TASK.collate([e], processor, setting), setting) for e in (short, long)]
    assert float(together.sum.detach()) == pytest.approx(sum(float(a.sum.detach()) for a in alone), rel=1e-6)


def test_a_text_longer_than_its_frames_has_nothing_to_train(folders: dict[str, Path], tmp_path: Path) -> None:
    _, processor, setting = loaded(folders["ctc"])
    sound = row(tmp_path, "a").values["audio"]
    frames = processor.positions(sound, ())
    fits, repeats, longer = ("ab" * frames)[:frames], "a" * frames, "ab" * frames
    weights = [
        TASK.encode(Row({"audio": sound, "text": t}), processor, setting)["weight"] for t in (fits, repeats, longer)
    ]
    assert weights == [frames, 0, 0]  # between two equal letters there has to be a frame of nothing
    assert TASK.encode(Row({"audio": sound, "text": "99"}), processor, setting)["weight"] == 0


def test_repetitions_are_one_letter_and_blanks_none(folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    model, processor, setting = loaded(folders["ctc"])
    vocabulary = processor.tokenizer.get_vocab()
    heard = torch.full((1, 8, len(vocabulary)), -9.0)
    for frame, token in enumerate(["H", "H", "<pad>", "E", "L", "<pad>", "L", "O"]):
        heard[0, frame, vocabulary[token]] = 9.0
    monkeypatch.setattr(ctc, "_logits", lambda model, batch: list(heard))
    assert TASK.predict(model, [row(tmp_path, "a")], processor, setting) == [{"text": "HELLO"}]


def test_a_few_tones_are_learnt_as_letters(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor, setting = loaded(folders["ctc"])
    texts = ["abe", "bae", "eab", "ea", "ab", "be"]
    rows = [row(tmp_path, text, f"{text}.wav") for text in texts]
    batch = TASK.collate([TASK.encode(r, processor, setting) for r in rows], processor, setting)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=3e-3)
    for _ in range(120):
        loss = TASK.loss(model.train(), batch, setting)
        (loss.sum / loss.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        answers = TASK.predict(model.eval(), rows, processor, setting)
    assert TASK.metrics(answers, rows, 0.0, setting)["wer"] == 0.0


# Metrics


def test_error_rates_are_those_of_known_cases() -> None:
    truth, given = ["The cat sat.", "Press 1"], ["the cat sat", "press one now"]
    assert word_errors.error_rates(truth, given, "basic")[0] == pytest.approx(2 / 5)  # 1 -> one, now added
    assert word_errors.error_rates(truth, given, "english")[0] == pytest.approx(1 / 5)  # one is 1
    assert word_errors.error_rates(truth, given, "none")[0] == pytest.approx(5 / 5)  # The, sat., Press, 1, now
    assert word_errors.error_rates(["abcd"], ["abxd"], "basic") == (1.0, 0.25)
    assert all(map(math.isnan, word_errors.error_rates(["...", "?"], ["", "well"], "basic")))  # no word to be right
    assert word_errors.error_rates(["...", "a"], ["b", "a"], "basic") == (1.0, 1.0)  # what was invented counts


def test_what_stands_in_the_rows_is_compared_as_written_too() -> None:
    setting = Setting(TASK.Options())
    metrics = TASK.metrics([{"text": "hello"}], [Row({"audio": "a.wav", "text": "Hello."})], 0.5, setting)
    assert (metrics["wer"], metrics["wer_as_written"], metrics["loss"]) == (0.0, 1.0, 0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=5))
def test_error_rates_of_any_texts(pairs: list[tuple[str, str]]) -> None:
    truth, given = [p[0] for p in pairs], [p[1] for p in pairs]
    for kind in ("basic", "english", "none"):
        again = word_errors.normalizer(kind)  # type: ignore[arg-type]
        wer, cer = word_errors.error_rates(truth, given, kind)  # type: ignore[arg-type]
        if any(map(again, truth)):
            assert wer >= 0.0 and cer >= 0.0
            assert word_errors.error_rates(truth, truth, kind) == (0.0, 0.0)  # type: ignore[arg-type]
        else:
            assert math.isnan(wer) and math.isnan(cer)
        assert all(text == " ".join(text.split()) for text in map(again, truth))
    assert word_errors.error_rates(["a b c"], ["a c"], "none")[0] == jiwer.wer("a b c", "a c")
