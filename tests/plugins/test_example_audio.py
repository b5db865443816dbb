"""Whisper tiny.en and the Asterisk prompts: read from what carries them. Needs `pefttool examples fetch`."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pefttool.api.errors import ModelError
from pefttool.setup.loading import Loading
from pefttool_examples import audio
from pefttool_examples.source import ExampleSource


def variable(name: str, values: np.ndarray[Any, Any], kind: int) -> bytes:
    shape = b"".join(struct.pack("<I", size) for size in values.shape)
    stored = name.encode() + b"\0"
    head = struct.pack("<H", len(stored)) + stored + struct.pack("<B", values.ndim) + shape
    return head + struct.pack("<BI", kind, values.nbytes) + values.tobytes()


def model_bin(*variables: bytes) -> bytes:
    return struct.pack("<IH", 6, 5) + b"Spec\0" + struct.pack("<II", 3, len(variables)) + b"".join(variables)


def test_variables_are_read_as_ctranslate2_writes_them() -> None:
    halves, whole = np.arange(6, dtype=np.float16).reshape(2, 3), np.array([1, -2], dtype=np.int32)
    found = audio.ctranslate2_variables(model_bin(variable("a/weight", halves, 4), variable("b", whole, 3)))
    assert list(found) == ["a/weight", "b"]
    assert (found["a/weight"] == halves).all() and found["b"].tolist() == [1, -2]


@pytest.mark.parametrize("cut", [3, 20, 45])
def test_a_damaged_file_is_told(cut: int) -> None:
    whole = model_bin(variable("a/weight", np.arange(6, dtype=np.float16), 4))
    with pytest.raises(ModelError, match="not as CTranslate2 writes it"):
        audio.ctranslate2_variables(whole[:cut])


def test_projections_of_one_input_are_taken_apart_and_keys_have_no_bias() -> None:
    fused = {
        "weight": np.arange(12, dtype=np.float16).reshape(6, 2),
        "bias": np.arange(6, dtype=np.float16),
    }
    weights: dict[str, Any] = {}
    variables = {f"x/{name}": value for name, value in fused.items()}
    for name, tensor in audio.projections(variables, "x", ["q_proj", "k_proj", "v_proj"]):
        weights[name] = tensor.tolist()
    assert weights["k_proj.weight"] == [[4, 5], [6, 7]] and "k_proj.bias" not in weights
    assert weights["q_proj.bias"] == [0, 1] and weights["v_proj.bias"] == [4, 5]


def test_transcripts_leave_out_what_is_no_speech() -> None:
    lines = [
        "; heading",
        "",
        "beep: [a beep]",
        "one: One",
        "vm-a: Press 1:  to  go on.\n",
        "silence/1: (1 second)",
        "x",
    ]
    assert list(audio.transcripts(iter(lines))) == [("one", "One"), ("vm-a", "Press 1: to go on.")]


@pytest.fixture(scope="module")
def prompts() -> Path:
    if audio.PROMPTS.installed is None or audio.TRANSCRIPTS.installed is None:
        pytest.skip(audio.PROMPTS.command)
    return ExampleSource().data("asterisk-prompts")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_held_out_text_is_trained_on(prompts: Path) -> None:
    train, held_out = rows(prompts / "train.jsonl"), rows(prompts / "eval.jsonl")
    assert (len(train), len(held_out)) == (474, 40)
    said = [{" ".join(re.findall(r"[\w']+", row["text"].lower())) for row in part} for part in (train, held_out)]
    assert not said[0] & said[1] and len(said[1]) == 40
    for row in (*train, *held_out):
        assert (prompts / row["audio"]).is_file()


@pytest.mark.slow
def test_whisper_hears_a_prompt(prompts: Path) -> None:
    if audio.WHISPER.installed is None:
        pytest.skip(audio.WHISPER.command)
    from pefttool.api.facts import Facts
    from pefttool.api.values import Row, Setting
    from pefttool.setup.base import load_model
    from pefttool_audio.recognition import SpeechRecognition

    task = SpeechRecognition()
    setting = Setting(task.Options(), generation={"max_new_tokens": 40})
    folder = ExampleSource().model("whisper-tiny.en")
    read = load_model(Loading(folder, task, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, processor, missing = read.model, read.processor, read.missing
    assert not missing and sum(p.numel() for p in model.parameters()) == 37_760_256
    named = {r["audio"]: r["text"] for part in ("train", "eval") for r in rows(prompts / f"{part}.jsonl")}
    path, text = next((a, t) for a, t in named.items() if len(t.split()) > 6)
    row = Row({"audio": str(prompts / path), "text": text})
    answer = task.predict(model, [row], processor, setting)
    assert task.metrics(answer, [row], 0.0, setting)["cer"] < 0.3
