"""Recordings: read, mixed down, resampled; formats that name them; complaints that name files and lines."""

from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from samples_audio import write_tones

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool.config import registry as registries
from pefttool.data import rows as reader
from pefttool_audio import recordings
from pefttool_audio.formats import Recordings, Transcripts


def sine(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_what_is_read_is_what_was_said_at_the_rate_asked_for(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, sine(rate), rate)
    heard = recordings.read(str(path), 16_000)
    assert heard.dtype == np.float32 and heard.shape == (recordings.samples(str(path), 16_000),)
    assert recordings.seconds(str(path)) == pytest.approx(0.5, abs=0.01)
    inner = slice(800, 7_200)  # filters and codecs swing in and out
    assert np.abs(heard[inner] - sine(16_000)[inner]).max() < (0.05 if suffix == ".ogg" else 0.005)


def test_a_recording_that_is_gone_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.wav: cannot be read"):
        recordings.seconds(str(tmp_path / "gone.wav"))


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([sine(16_000), -sine(16_000)], axis=1), 16_000)
    assert np.abs(recordings.read(str(tmp_path / "a.wav"), 16_000)).max() < 1e-4


def test_a_tone_above_half_the_new_rate_is_filtered_and_does_not_come_back_lower(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(44_100, hertz=15_000), 44_100)
    assert np.abs(recordings.read(str(tmp_path / "a.wav"), 16_000)[800:-800]).max() < 0.01


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"", "no recording that libsndfile can read"),
        (b"<html>no sound</html>" * 9, "no recording"),
    ],
)
def test_what_is_no_recording_is_told(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    assert complaint in (recordings.fault(str(path)) or "")


def test_a_recording_without_samples_is_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    assert recordings.fault(str(tmp_path / "a.wav")) == "the recording is empty"


def test_a_recording_that_ends_too_early_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"a\.flac: cannot be read to its end"):
        recordings.read(str(path), 16_000)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="not numbers"):
        recordings.read(str(tmp_path / "a.wav"), 16_000)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 5_000), rate=st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000]))
def test_the_length_after_resampling_is_known_from_the_header(
    frames: int, rate: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lengths") / "a.wav"
    soundfile.write(path, np.zeros(frames), rate)
    assert recordings.samples(str(path), 16_000) == len(recordings.read(str(path), 16_000))


def test_a_folder_of_recordings_is_rows_with_the_names_of_folders(tmp_path: Path) -> None:
    for name in ("train/yes/1.wav", "train/no/1.flac", "test/yes/2.wav"):
        write_tones(tmp_path / name, [440.0])
    registry = registries.build()
    files = reader.find_files(tmp_path, reader.item_suffixes(registry))
    found = reader.read(files.train, registry)
    assert [row.values["label"] for row in found.rows] == ["no", "yes"]
    assert [path.name for path in files.eval] == ["2.wav"]
    assert all(Path(row.values["audio"]).is_absolute() for row in found.rows)


def test_recordings_beside_a_table_are_what_it_refers_to(tmp_path: Path) -> None:
    write_tones(tmp_path / "clips" / "1.wav", [440.0])
    (tmp_path / "metadata.csv").write_text("audio,text\nclips/1.wav,a\n")
    files = reader.find_files(tmp_path, reader.item_suffixes(registries.build()))
    assert [path.name for path in files.train] == ["metadata.csv"]


def test_librispeech_folders_are_understood(tmp_path: Path) -> None:
    for part, speaker in (("train-clean-100", "84"), ("dev-clean", "1272")):
        folder = tmp_path / part / speaker / "7"
        write_tones(folder / f"{speaker}-7-0000.flac", [440.0])
        (folder / f"{speaker}-7.trans.txt").write_text(f"{speaker}-7-0000 GO DO YOU HEAR\n")
    registry = registries.build()
    files = reader.find_files(tmp_path, reader.item_suffixes(registry))
    (train,), (held_out,) = (reader.read(part, registry).rows for part in (files.train, files.eval))
    assert train.values["text"] == held_out.values["text"] == "GO DO YOU HEAR"
    assert train.values["audio"].endswith("84-7-0000.flac")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"b WORDS", "no recording 'b' beside this file"),
        (b"a", "found 'a' alone"),
        (b"a \xff", "found byte 0xff at position 3"),
    ],
)
def test_transcripts_are_complained_of_by_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    write_tones(tmp_path / "a.wav", [440.0])
    path = tmp_path / "1.trans.txt"
    path.write_bytes(b"a WORDS\n\n" + line + b"\n")
    good, bad = Transcripts().read(path, None)
    assert isinstance(good, Row) and isinstance(bad, DataProblem)
    assert (bad.file, bad.line) == (str(path), 3) and complaint in bad.message


def test_an_empty_file_is_told_by_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (problem,) = Recordings().read(tmp_path / "a.wav", None)
    assert isinstance(problem, DataProblem) and "empty" in problem.message


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_may_stand_where_a_path_is_expected(text: str) -> None:
    recordings.is_recording(text)
    assert recordings.fault(text) is not None


def test_noise_is_no_recording(tmp_path: Path) -> None:
    draws = random.Random(0)
    for i in range(30):
        path = tmp_path / f"{i}.{draws.choice(['wav', 'flac', 'ogg', 'mp3'])}"
        path.write_bytes(draws.choice([draws.randbytes(300), string.printable.encode()]))
        fault = recordings.fault(str(path))
        if fault is None:  # noise may look like an MP3 header
            recordings.seconds(str(path))
