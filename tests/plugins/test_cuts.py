"""`pefttool predict` says what did not fit, beside the answers and not among them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finished_runs import Runs
from terminal import Terminal

from pefttool.api.values import Setting
from pefttool.config.registry import Registry
from pefttool.toolkit import truncation


@pytest.fixture(scope="module")
def runs(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(registry, tmp_path_factory.mktemp("cuts"))


@pytest.mark.parametrize(
    ("end", "most", "unended"), [(9, 3, 1), ([8, 9], 3, 0), (None, 3, 2), (9, 4, 0), (9, None, 0), (9, 2, 1)]
)
def test_an_answer_is_cut_where_it_is_as_long_as_may_be_and_has_no_end(
    end: int | list[int] | None, most: int | None, unended: int
) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=end), config=SimpleNamespace())
    assert truncation.unended(torch.tensor([[1, 2, 9], [1, 2, 8]]), model, most) == unended


def test_nothing_is_counted_for_nobody_and_all_of_it_for_whoever_asks() -> None:
    truncation.tell(inputs=5, answers=5)
    setting = Setting(None, sequence_length=16, generation={"max_new_tokens": 4})
    with truncation.counted() as counted:
        assert counted.line(3, setting) is None
        truncation.tell(inputs=1)
        truncation.tell(answers=2)
    truncation.tell(answers=1)
    assert counted.line(3, setting) == (
        "1 of 3 inputs were cut to 16 tokens, the run's train.sequence_length;"
        " 2 of 3 answers were cut at generation.max_new_tokens=4: raise it with -o generation.max_new_tokens=N"
    )


@pytest.mark.parametrize("name", ["lora", "lora-seq2seq", "lora-classes"])
def test_predict_says_it_in_one_line_on_standard_error(
    name: str, runs: Runs, registry: Registry, terminal: Terminal, tmp_path: Path
) -> None:
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    run = runs.copy(name, tmp_path / "run")
    facts = run / "adapter" / "pefttool.json"
    document = json.loads(facts.read_text("utf-8"))
    facts.write_text(json.dumps({**document, "sequence_length": 24}), "utf-8")
    terminal.run("plugins")  # what the run printed is read
    texts = ("--text", "a gem", "--text", "slow " * 40, "--batch-size", "1")
    code, out, err = terminal.run("predict", str(run), *texts, "-o", "generation.max_new_tokens=1")
    assert code == 0 and len(out.splitlines()) == 2 and all(json.loads(line) for line in out.splitlines())
    (line,) = [line for line in err if line.startswith("predict: ")]
    assert line.startswith("predict: 1 of 2 inputs were cut to 24 tokens")
    assert ("answers were cut at generation.max_new_tokens=1:" in line) == (name != "lora-classes")
    code, out, err = terminal.run("predict", str(run), "--text", "a", "-o", "generation.max_new_tokens=64")
    assert code == 0 and not [line for line in err if "inputs were cut" in line]


def test_the_ends_that_generation_was_told_count_before_the_models_own() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=9), config=SimpleNamespace())
    assert truncation.unended(torch.tensor([[1, 2, 9], [1, 2, 8]]), model, 3, [8, 9]) == 0
