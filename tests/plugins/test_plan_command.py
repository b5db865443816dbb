"""`pefttool plan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal
from tiny_models import configs
from transformers import BeitConfig, BertConfig, PatchTSTConfig, T5Config, XLNetConfig

from pefttool.config import sizes
from pefttool.config.registry import Registry
from pefttool.testing.models import model_folder

TINY = ("--adapter", "lora", "-o", "train.sequence_length=32", "-o", "train.batch_size=8")


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A folder with a config.json and nothing else."""
    folder = tmp_path / "llama"
    configs()["llama"].save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return str(folder)


@pytest.fixture
def plan(terminal: Terminal) -> Any:
    """Runs `pefttool plan --json` and returns the document."""
    terminal.allow("lora", "full", "head", "prefix", "text", "bnb")

    def run(*arguments: str) -> Any:
        code, out, err = terminal.run("plan", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def test_from_a_config_alone(plan: Any, llama: str) -> None:
    made = plan("--model", llama, "--for", "cuda:8GiB", *TINY, "--quantize", "nf4", "-o", "adapter.r=16")
    assert (made["task"], made["device"], made["dtype"]) == ("causal-lm", "cuda", "bfloat16")
    assert sum(made["parts"].values()) == made["peak_bytes"] > 0
    assert made["total_bytes"] == made["peak_bytes"] + sum(share["bytes"] for share in made["outside"])
    assert made["fits"] and made["memory_bytes"] == 8 << 30
    assert made["micro_batch"] == {"rows": 8, "tokens": 32, "of_this_data": False}
    assert {share["name"] for share in made["outside"]} >= {"CUDA context", "cuBLAS workspace"}
    assert all(share["source"] for share in made["outside"])
    more = plan("--model", llama, "--for", "cuda:8GiB", *TINY, "--quantize", "nf4", "-o", "adapter.r=64")
    assert more["parts"]["adapter"] == 4 * made["parts"]["adapter"]


def test_a_streamed_step_has_a_floor(
    plan: Any, llama: str, terminal: Terminal, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path))
    monkeypatch.setattr("pefttool.forecast.throughput.reading_rate", lambda file: 1000.0)
    arguments = ("--model", llama, "--for", "cuda:8GiB", *TINY, "--quantize", "nf4")
    assert plan(*arguments)["feeding"] is None
    once = plan(*arguments, "-o", "memory.stream=true")["feeding"]
    assert once["bytes"] > 0 and once["seconds"] == once["bytes"] / 1000.0 and once["source"].startswith("measured")
    four = plan(*arguments, "-o", "memory.stream=true", "-o", "train.gradient_accumulation=4")["feeding"]
    assert four["bytes"] == 4 * once["bytes"]
    _, out, _ = terminal.run("plan", *arguments, "-o", "memory.stream=true")
    assert f"· a step fetches {sizes.show(once['bytes'])} at 1000 B/s (measured: " in out


def test_for_this_machine(plan: Any, llama: str) -> None:
    import psutil

    made = plan("--model", llama, *TINY, "-o", "device=cpu")
    assert (made["device"], made["memory_bytes"]) == ("cpu", psutil.virtual_memory().total)
    process, best = made["outside"]
    assert best["bytes"] == made["parts"]["adapter"]
    assert process["source"].startswith("measured") and process["bytes"] > 100 << 20


@pytest.mark.parametrize(
    ("device", "dtype", "memory"),
    [("cuda", "bfloat16", None), ("cpu:64GiB", None, 64 << 30), ("mps:16GiB", "float32", 16 << 30)],
)
def test_for_others(plan: Any, llama: str, device: str, dtype: str | None, memory: int | None) -> None:
    made = plan("--model", llama, *TINY, "--for", device)
    assert made["memory_bytes"] == memory and made["fits"] == (None if memory is None else True)
    assert dtype is None or made["dtype"] == dtype


def test_an_encoder_is_planned_as_a_classifier_and_others_have_to_be_named(
    plan: Any, terminal: Terminal, tmp_path: Path
) -> None:
    BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=1).save_pretrained(
        tmp_path / "bert"
    )
    assert plan("--model", str(tmp_path / "bert"), *TINY)["task"] == "text-classification"
    PatchTSTConfig().save_pretrained(tmp_path / "series")
    code, out, err = terminal.run("plan", "--model", str(tmp_path / "series"), *TINY)
    assert code == 2 and not out and "say --task NAME" in err[-1]


def test_a_model_of_another_kind_is_told_what_it_is_for(terminal: Terminal) -> None:
    """Not that its folder were broken. An encoder-decoder is no decoder, though transformers would take it apart."""
    terminal.allow("lora", "text", "vision", "audio", "series")
    encoder = "question-answering, tabular-classification, text-classification, token-classification"
    for kind, model_type, task, able in (
        ("encoder", "bert", "image-classification", encoder),
        ("speech", "whisper", "token-classification", "speech-recognition"),
        ("series", "patchtst", "causal-lm", "series-classification, series-forecasting"),
    ):
        folder = model_folder(kind)
        code, out, err = terminal.run("plan", "--model", str(folder), "--adapter", "lora", "--task", task)
        assert (code, out) == (1, "")
        assert err[-1] == (
            f"error: model {folder}: a {model_type!r} model is none for task {task!r}: name one of its tasks"
            f" with --task ({able}), or give another model"
        )


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (BeitConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32), "image-classification"),
        (XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=2, d_inner=64), "text-classification"),
    ],
)
def test_a_frozen_backbone_is_asked_in_the_dtype_that_it_runs_in(
    plan: Any, terminal: Terminal, tmp_path: Path, config: Any, task: str
) -> None:
    """Pixels are float32, and so is the attention bias of XLNet: a run has them in autocast, and so has the plan."""
    terminal.allow("head", "text", "vision")
    config.save_pretrained(tmp_path)
    made = plan("--model", str(tmp_path), "--adapter", "head", "--task", task, "-o", "dtype=bfloat16")
    assert made["dtype"] == "bfloat16" and made["peak_bytes"] > 0


def test_a_text_that_has_to_end_ends(plan: Any, tmp_path: Path) -> None:
    """T5 and BART classify by the state at the end of a text: the rows that are planned with have one."""
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    T5Config(**sizes, decoder_start_token_id=0).save_pretrained(tmp_path)
    assert plan("--model", str(tmp_path), "--task", "text-classification", *TINY)["peak_bytes"] > 0


def test_a_budget_chooses_settings_and_they_keep_it(plan: Any, llama: str) -> None:
    there = ("--model", llama, *TINY, "--for", "cuda:8GiB")
    whole = plan(*there)
    allowed = f"{whole['total_bytes'] - whole['parts']['activations'] // 4}B"
    made = plan(*there, "--budget", allowed)
    assert made["total_bytes"] <= int(allowed[:-1]) < whole["total_bytes"]
    chosen = made["settings"]
    assert chosen["train.batch_size"] * chosen["train.gradient_accumulation"] == 8
    assert chosen["train.batch_size"] < 8
    again = plan(*there, *(w for k, v in chosen.items() for w in ("-o", f"{k}={json.dumps(v)}")))
    assert again["peak_bytes"] == made["peak_bytes"]


def test_a_budget_that_nothing_fits_is_refused_in_one_line(plan: Any, terminal: Terminal, llama: str) -> None:
    code, out, err = terminal.run("plan", "--model", llama, *TINY, "--for", "cuda:8GiB", "--budget", "1MiB")
    assert code == 2 and not out
    (line,) = (text for text in err if text.startswith("error: "))
    assert line.startswith("error: memory.budget: 1.00 MiB: this recipe takes at least ")


def test_bad_settings_are_refused_with_the_nearest_that_work(plan: Any, terminal: Terminal, llama: str) -> None:
    code, _, err = terminal.run("plan", "--model", llama, *TINY, "-o", "train.sequence_length=65")
    assert code == 2 and "65 is longer than the model's 64 positions; use at most 64" in err[-1]
    for device in ("tpu:8GiB", "cuda:", "cuda:8", "cpu:much"):
        code, out, err = terminal.run("plan", "--model", llama, *TINY, "--for", device)
        assert code == 2 and not out and len([e for e in err if e.startswith("error: ")]) == 1


def test_the_table_names_every_part_and_how_it_is_known(plan: Any, terminal: Terminal, llama: str) -> None:
    code, out, _ = terminal.run("plan", "--model", llama, *TINY, "--for", "cuda:1MiB")
    assert code == 0
    for word in ("weights", "adapter", "optimizer", "activations", "CUDA context", "assumed", "simulated", "total"):
        assert word in out
    assert "does not fit in 1.00 MiB: --budget" in out


def test_a_picture_has_no_tokens(plan: Any, terminal: Terminal) -> None:
    terminal.allow("vision", "lora")
    arguments = ("--model", str(model_folder("vision")), "--task", "image-classification", "--adapter", "lora")
    code, out, err = terminal.run("plan", *arguments, "-o", "train.batch_size=3")
    assert code == 0, err
    assert "micro-batches of 3 rows; the peak" in out and "tokens" not in out
    assert plan(*arguments)["micro_batch"]["tokens"] is None


def test_the_lengths_of_rows_that_a_run_has_encoded_are_used(
    plan: Any, registry: Registry, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(registry.sources["example"].model("all-minilm-l6-v2"))
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path))
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{'good ' * (i % 5 + 1)}{i},{i % 2}\n" for i in range(24)))
    job = ("--adapter", "lora", "--model", model, "--data", str(data), "-o", "train.batch_size=4")
    before = plan(*job)
    assert before["micro_batch"] == {"rows": 4, "tokens": 256, "of_this_data": False}
    terminal.allow("lora", "text")
    few = ("-o", "train.max_steps=1", "-o", "check=files")
    assert terminal.run("run", *job, *few, "--out", str(tmp_path / "run"))[0] == 0
    after = plan(*job)
    assert after["micro_batch"] == {"rows": 4, "tokens": 8, "of_this_data": True}
    assert after["peak_bytes"] < before["peak_bytes"]
    assert not plan(*job, "-o", "train.sequence_length=8")["micro_batch"]["of_this_data"]
    assert not plan(*job, "-o", "data.cache=false")["micro_batch"]["of_this_data"]
