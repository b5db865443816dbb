"""The README beside an adapter: its Python runs in a process without pefttool, and answers as pefttool does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import case_models
import pytest
from PIL import Image

from pefttool.cli import entry
from pefttool.testing import vision_models

TEXT = "Write your own text here."


def rows(task: str, folder: Path) -> Path:
    if task == "image-classification":
        for name, colour in (("dark", 20), ("light", 220)):
            (folder / "pictures" / name).mkdir(parents=True)
            for n in range(8):
                Image.new("RGB", (40, 40), (colour, colour + n, colour)).save(folder / "pictures" / name / f"{n}.png")
        Image.new("RGB", (40, 40), (30, 200, 90)).save(folder / "picture.png")
        return folder / "pictures"
    made: Any = {
        "text-classification": lambda n: {"text": f"number {n}", "label": ("yes", "no", "maybe")[n % 3]},
        "token-classification": lambda n: {"tokens": ["Anna", "lives", str(n)], "tags": ["B-PER", "O", "B-LOC"]},
        "chat": lambda n: {
            "messages": [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": "three"}]
        },
    }[task]
    (folder / "rows.jsonl").write_text("".join(json.dumps(made(n)) + "\n" for n in range(18)))
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    ("task", "model", "adapter"),
    [
        ("text-classification", "bert", "lora"),
        pytest.param("text-classification", "bert", "head", marks=pytest.mark.slow),
        pytest.param("text-classification", "bert", "full", marks=pytest.mark.slow),
        pytest.param("token-classification", "bert", "lora", marks=pytest.mark.slow),
        ("chat", "chatml", "lora"),
        pytest.param("image-classification", "vision", "lora", marks=pytest.mark.slow),
    ],
)
def test_its_python_answers_as_pefttool_does(
    task: str, model: str, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == "vision":
        (tmp_path / "vision").mkdir()
        vision_models.tiny_vision(tmp_path / "vision")
    base = tmp_path / "vision" if model == "vision" else case_models.folder(model)
    run, data = tmp_path / "run", rows(task, tmp_path)
    given = ["--model", str(base), "--data", str(data), "--adapter", adapter, "--task", task, "--out", str(run)]
    keys = ("train.max_steps=6", "train.rehearse=false", "dtype=float32", "check=files", "generation.max_new_tokens=8")
    rate = ("train.learning_rate=0.01",) if adapter != "head" else ("train.learning_rate=0.1",)
    used = [key for key in (*keys, *rate) if task == "chat" or "generation" not in key]
    assert entry.execute(["run", *given, *(flag for key in used for flag in ("-o", key))]) == 0
    card = (run / "adapter" / "README.md").read_text()
    assert f"base_model: {base}" in card and f"tags: [pefttool, {adapter}, {task}]" in card
    (python,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    if task == "image-classification":
        python = python.replace('"picture.png"', repr(str(tmp_path / "picture.png")))
    script = tmp_path / "snippet.py"
    script.write_text(f"import sys\n{python}\nassert not any(m.startswith('pefttool') for m in sys.modules)\n")
    done = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=run / "adapter", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "size mismatch" not in done.stderr
    answer = done.stdout.strip().splitlines()[-1]
    capsys.readouterr()
    if task == "image-classification":
        asked = ["--data", str(tmp_path / "picture.png"), "--format", "images"]
    elif task == "token-classification":
        (tmp_path / "asked.jsonl").write_text(json.dumps({"tokens": TEXT.split()}) + "\n")
        asked = ["--data", str(tmp_path / "asked.jsonl")]
    else:
        asked = ["--text", TEXT]
    assert entry.execute(["predict", str(run), *asked]) == 0
    ours = json.loads(capsys.readouterr().out)
    if task == "chat":
        assert answer.strip() == next(iter(ours.values()))
    elif task == "token-classification":
        assert ast.literal_eval(answer) == ours["tags"]
    else:
        logits = ast.literal_eval(answer)
        assert set(logits) == {"yes", "no", "maybe"} or set(logits) == {"dark", "light"}
        assert max(logits, key=logits.__getitem__) == ours["label"]
        assert softmax(logits)[ours["label"]] == pytest.approx(ours["score"], abs=1e-5)


def softmax(logits: dict[str, float]) -> dict[str, float]:
    from math import exp

    total = sum(exp(value) for value in logits.values())
    return {name: exp(value) / total for name, value in logits.items()}
