"""`pefttool kernels`, `bench` and `tune`: what they print, their exit codes, and that errors are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bnb_models import save_llama
from terminal import Terminal
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from pefttool import UsageError
from pefttool.setup import devices
from pefttool_bnb import commands
from pefttool_bnb.survey import describe, survey
from pefttool_kernels import backends, dispatch, machine
from pefttool_kernels.dispatch import Machine
from pefttool_kernels.selftest import selftest
from pefttool_kernels.timing import tune
from pefttool_kernels.timing.tune import Point

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "numpy")
ADA = Machine("cuda", "A Card", (8, 9), 24, free_bytes=8 << 30)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = save_llama(tmp_path_factory.mktemp("llama"), biases=False)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test of one kind; the whole of it is tested elsewhere."""
    monkeypatch.setattr(selftest, "KINDS", {"nf4 nested": selftest.KINDS["nf4 nested"]})


@pytest.fixture
def command(terminal: Terminal, quick: None) -> Any:
    """Runs `pefttool kernels ...` with the plugins that it needs, and no other."""
    terminal.allow("bnb")
    return lambda *arguments: terminal.run("kernels", *arguments)


def test_help_imports_nothing_heavy() -> None:
    for arguments in (["--help"], ["kernels", "--help"], ["kernels", "bench", "--help"], ["kernels", "tune", "--help"]):
        code = (
            "import sys\nfrom pefttool.cli.entry import execute\n"
            f"assert execute({arguments!r}) == 0\n"
            f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "kernels" in done.stdout


def test_the_built_in_example_is_the_default(terminal: Terminal, quick: None) -> None:
    terminal.allow("bnb", "examples")
    code, out, err = terminal.run("kernels", "--device", "cpu")
    assert code == 0 and not err
    assert out.startswith("model:               example:smollm2-135m-instruct\n")
    assert "[1536, 576]" in out and "gate_proj, up_proj" in out


def test_without_the_example_it_asks_for_a_model(command: Any) -> None:
    code, out, err = command()
    assert code == 2 and not out
    (line,) = err
    assert line.startswith("error: --model: none given, and the example model cannot be had here")


def test_layers_are_grouped_by_shape_with_their_reasons(command: Any, llama: Path) -> None:
    code, out, err = command("--model", str(llama), "--rows", "100", "--device", "cpu")
    assert code == 0 and not err
    lines = [line.split() for line in out.splitlines()]
    (queries,) = [index for index, line in enumerate(lines) if line[:3] == ["4", "[128,", "128]"]]
    assert lines[queries][3:9] == ["q_proj,", "o_proj", "forward,", "100", "rows", "tiles"]
    assert lines[queries + 1][:4] == ["backward,", "100", "rows", "tiles"]
    assert lines[queries + 2][:5] == ["forward,", "1", "row,", "no", "gradients"]
    assert "100 rows: a tile of the weight stays in the cache" in out
    assert "lm_head" not in out and "New heads and the output layer stay in floating point." in out
    (verdict,) = [line for line in out.splitlines() if line.startswith("  tiles ")]
    assert "correct: " in verdict
    (absent,) = [line for line in out.splitlines() if line.startswith("  triton ")]
    assert absent.endswith("not here: it runs on a GPU, the tensors are on the CPU")


def test_json_says_the_same(command: Any, llama: Path) -> None:
    code, out, _ = command("--model", str(llama), "--quantize", "int8", "--device", "cpu", "--json")
    document = json.loads(out)
    assert code == 0 and document["ok"] and document["quantize"] == "int8" and document["model"] == str(llama)
    shapes = {(group["out_features"], group["in_features"]): len(group["names"]) for group in document["layers"]}
    assert shapes == {(128, 128): 4, (64, 128): 4, (192, 128): 4, (128, 192): 2}
    assert [product["rows"] for product in document["layers"][0]["products"]] == [512, 512, 1]
    assert {check["backend"] for check in document["self_test"]} >= set(dispatch.BACKENDS)


def test_no_weight_is_read(command: Any, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    assert command("--model", str(llama), "--device", "cpu")[0] == 0


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_wrong_result_is_exit_status_one(
    command: Any, llama: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    right = backends._BACKWARD["tiles"]
    monkeypatch.setitem(backends._BACKWARD, "tiles", lambda *arguments: right(*arguments) * 1.01)
    code, out, err = command("--model", str(llama), "--device", "cpu", *flags)
    assert code == 1 and not err
    if flags:
        assert json.loads(out)["ok"] is False
    else:
        assert "tiles         WRONG in 3 of 9 checks: linear_4bit backward nf4 nested bfloat16: error 1.0e-02" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "no/such/model/at/all"], 1, "no such folder"),
        (["--quantize", "nf5"], 2, "'nf5' is not one of"),
        (["--rows", "0"], 2, "--rows"),
        (["--device", "gpu"], 2, "device: unknown 'gpu'"),
        (["bench", "--shape", "4096"], 2, "'4096' is not a shape: write out_features x in_features"),
        (["bench", "--m", "0"], 2, "--m"),
        (["bench", "--kind", "int4"], 2, "'int4' is not one of"),
        (["bench", "--json", "/no/such/folder/x"], 2, "there is no folder /no/such/folder"),
        (["tune", "--device", "cpu"], 2, "nothing to tune here"),
    ],
)
def test_mistakes_are_one_line(command: Any, arguments: list[str], code: int, words: str) -> None:
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    (line,) = err
    assert line.startswith("error: ") and words in line


def test_a_model_without_linear_layers_is_refused(command: Any, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)  # shows its progress on standard error, too
    code, _, err = command("--model", str(tmp_path), "--device", "cpu")
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "has none" in errors[0] and "GPT2Model" in errors[0]


# -- other machines than this one


def products(folder: Path, here: Machine, quantizer: str = "nf4", rows: int = 512) -> list[tuple[str, str]]:
    """Backend and reason of every product."""
    groups = survey(folder, quantizer, rows, here, torch.bfloat16)
    return [(product.backend, product.reason) for group in groups for product in group.products]


def test_what_a_gpu_would_use(llama: Path) -> None:
    assert products(llama, ADA)[:3] == [
        ("triton", "512 rows: fused up to 1024 (calculated)"),
        ("triton", "512 rows: fused up to 1024 (calculated)"),
        ("bitsandbytes", "1 row without gradients: its kernel for single rows"),
    ]
    assert products(llama, ADA, rows=2048)[0][0] == "dequantize"


def test_8_bit_weights_that_the_kernels_do_not_read_are_foreseen(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=60, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    found = products(tmp_path, ADA, "int8")
    assert found[0][0] == "bitsandbytes" and "60 is not a multiple of 64" in found[0][1]
    groups = survey(tmp_path, "int8", 512, ADA, torch.bfloat16)
    assert not any("classifier" in name for group in groups for name in group.names)


def test_apples_gpu_is_refused(llama: Path) -> None:
    with pytest.raises(UsageError, match="untested on MPS"):
        survey(llama, "nf4", 1, Machine("mps"), torch.float32)


def test_a_machine_in_words() -> None:
    assert describe(Machine("cpu", native_missing="it was not built"))["native code"] == "it was not built"
    card = describe(ADA)
    assert card["device"] == "cuda A Card" and card["compute capability"] == "8.9" and card["free memory"] == "8.0 GiB"
    assert card["fused kernels"] == "up to 1024 rows (calculated; `pefttool kernels tune` measures)"
    tuned = Machine("cuda", "A Card", (9, 0), 132, fused_rows={"forward": 256, "backward": 64})
    assert describe(tuned)["fused kernels"] == "forward up to 256 rows, backward up to 64 rows (measured on this card)"


# -- bench and tune


def test_bench_prints_a_table_and_appends_json_lines(command: Any, tmp_path: Path) -> None:
    lines = tmp_path / "times.jsonl"
    arguments = ["bench", "--shape", "64x128", "--shape", "70x64", "--m", "3", "--kind", "fp4", "--kind", "int8"]
    for count in (1, 2):
        code, out, err = command(*arguments, "--seconds", "0", "--device", "cpu", "--json", str(lines))
        assert code == 0 and not err
        assert len(lines.read_text().splitlines()) == 12 * count
    table = out.splitlines()
    assert (
        len(table) == 14 and re.match(r"cpu: \d+ threads?, torch", table[0]) and table[2].startswith("fp4 64x128 M=3")
    )
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {record["what"] for record in records} == {"forward", "forward+backward", "evaluation"}
    assert all(record["milliseconds"]["pefttool"] > 0 for record in records)


def test_tune_without_a_gpu_is_one_line(command: Any) -> None:
    code, out, err = command("tune")
    assert (code, out) == (2, "")
    assert err == ["error: tune: there is nothing to tune here: the fused kernels run on CUDA devices, not on cpu"]


def test_tune_prints_what_it_measured_and_keeps_it(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = devices.DeviceFacts(build="cuda", cuda=(devices.CudaDevice("A Card", (8, 9), 8 << 30),))
    times = [Point("forward", 16, 1.0, 2.0), Point("forward", 64, 3.0, 2.0), Point("backward", 16, 1.0, 0.5)]
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "report", lambda: found)
    monkeypatch.setattr(machine, "of", lambda device: ADA)
    monkeypatch.setattr(tune, "points", lambda *arguments: iter(times))
    code, out, err = command("tune", "--device", "cuda:0")
    assert code == 0 and not err
    assert "forward: fused kernels up to 16 rows" in out and "backward: fused kernels up to 0 rows" in out
    assert machine.measured_rows("A Card") == {"forward": 16, "backward": 0}
    assert [line.split() for line in out.splitlines()][2] == ["forward", "16", "1.000", "2.000", "2.00", "x"]


def test_tune_says_why_a_card_has_no_choice(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = devices.DeviceFacts(build="cuda", cuda=(devices.CudaDevice("Old", (7, 5), 8 << 30),))
    monkeypatch.setattr(devices, "report", lambda: found)
    monkeypatch.setattr(machine, "of", lambda device: Machine("cuda", "Old", (7, 5), 40))
    code, _, err = command("tune")
    assert code == 2 and len(err) == 1 and "no tensor-core code for compute capability 7.5" in err[0]


def test_the_defaults_of_bench_are_shapes() -> None:
    from pefttool_kernels.timing import table as timing_table

    assert [timing_table.shape(text) for text in commands.SHAPES] == [(1024, 4096), (4096, 4096)]
