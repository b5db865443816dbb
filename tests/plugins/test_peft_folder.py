"""PEFT's folder layout: names, heads folded in, damaged folders."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load, load_file, save_file

from pefttool import ModelError
from pefttool.toolkit import peft_folder
from pefttool.toolkit.quiet import CHATTY, quiet_imports
from pefttool_lora.adapter import LoraAdapter
from pefttool_prefix.adapter import PrefixAdapter


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


@pytest.fixture
def saved(models: Path, tmp_path: Path) -> Path:
    """A LoRA folder of the tiny classifier, with its head."""
    model, adapter = tiny.load_base(models, "bert"), LoraAdapter()
    attached = adapter.attach(model, adapter.Options(r=2), tiny.known(model, "bert"))
    tiny.save(adapter, attached.model, tmp_path, "bert")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "prefix", "plain"),
    [
        ("model.layers.0.mlp.weight", "", "model.layers.0.mlp.weight"),
        ("base_model.model.bert.query.base_layer.weight", "base_model.model.", "bert.query.weight"),
        ("base_model.model.bert.query.lora_A.default.weight", "base_model.model.", None),
        ("base_model.model.bert.query.lora_magnitude_vector.default.weight", "base_model.model.", None),
        ("base_model.model.classifier.modules_to_save.default.weight", "base_model.model.", "classifier.weight"),
        ("base_model.model.classifier.original_module.weight", "base_model.model.", None),
        # A language model's own root is called `model`: only the caller knows how often peft has wrapped.
        ("base_model.model.layers.0.mlp.weight", "base_model.", "model.layers.0.mlp.weight"),
        ("prompt_encoder.default.embedding.weight", "base_model.", None),
    ],
)
def test_plain_names(name: str, prefix: str, plain: str | None) -> None:
    assert peft_folder.plain_name(name, prefix) == plain


@pytest.mark.parametrize("adapter", [None, LoraAdapter(), PrefixAdapter()], ids=["plain", "lora", "prefix"])
def test_head_parameters_are_the_live_ones(models: Path, adapter: Any) -> None:
    model = tiny.load_base(models, "bert")
    if adapter is not None:
        model = adapter.attach(model, adapter.Options(), tiny.known(model, "bert")).model
    found = peft_folder.head_parameters(model, ("classifier",))
    assert set(found) == {"classifier.weight", "classifier.bias"}
    before = tiny.logits(model)
    with torch.no_grad():
        found["classifier.bias"].add_(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(tiny.logits(model) - before, torch.tensor([1.0, 2.0, 3.0]).expand(3, 3))


def test_a_head_joins_pefts_files_and_comes_back(saved: Path) -> None:
    earlier = {n: t for n, t in load_file(saved / "adapter_model.safetensors").items() if "classifier" not in n}
    head = {"classifier.weight": torch.full((3, 32), 0.5), "classifier.bias": torch.arange(3.0)}
    peft_folder.write_head(saved, head, ("classifier",))
    stored = load_file(saved / "adapter_model.safetensors")
    assert set(stored) == {*earlier, "base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert all(torch.equal(stored[n], t) for n, t in earlier.items())
    assert json.loads((saved / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]
    back = peft_folder.read_head(saved)
    assert back.keys() == head.keys() and all(torch.equal(back[n], head[n]) for n in head)
    assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_elsewhere_a_head_is_added_to_head_safetensors(tmp_path: Path) -> None:
    peft_folder.write_tensors(tmp_path / "head.safetensors", {"encoder.layer.2.weight": torch.ones(2, 5)})
    peft_folder.write_head(tmp_path, {"score.weight": torch.zeros(3, 2)}, ("score",))
    assert set(peft_folder.read_head(tmp_path)) == {"encoder.layer.2.weight", "score.weight"}
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_a_folder_without_a_head_has_none(models: Path, tmp_path: Path) -> None:
    assert peft_folder.read_head(tmp_path) == {}
    model, adapter = tiny.load_base(models, "llama"), LoraAdapter()
    tiny.save(adapter, adapter.attach(model, adapter.Options(), tiny.known(model, "llama")).model, tmp_path, "llama")
    assert peft_folder.read_head(tmp_path) == {}


def test_a_write_that_fails_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "adapter_model.safetensors").read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        peft_folder.write_head(saved, {"classifier.bias": torch.zeros(3)}, ("classifier",))
    assert (saved / "adapter_model.safetensors").read_bytes() == before


def test_what_is_saved_depends_on_nothing_else(models: Path, saved: Path, tmp_path_factory: Any) -> None:
    """Sets have an order of their own in every process; the folder of a rerun must be bit-equal."""
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) > 1
    again = tmp_path_factory.mktemp("again")
    adapter = LoraAdapter()
    loaded = adapter.load(tiny.load_base(models, "bert"), saved)
    tiny.save(adapter, loaded, again, "bert")
    assert (
        load_file(again / "adapter_model.safetensors").keys() == load_file(saved / "adapter_model.safetensors").keys()
    )
    assert (again / "adapter_config.json").read_bytes() == (saved / "adapter_config.json").read_bytes()


def test_damage_is_one_line(models: Path, saved: Path) -> None:
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    good, text = weights.read_bytes(), config.read_text()
    tensors = load(good)

    def complaint() -> str:
        with pytest.raises(ModelError) as caught:
            LoraAdapter().load(tiny.load_base(models, "bert"), saved)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights.write_bytes(good[:-7])
    assert "cannot be read" in complaint()
    weights.write_bytes(b"\x80\x04not a pickle, nor safetensors")
    assert "cannot be read" in complaint()
    weights.unlink()
    assert "is missing" in complaint()
    lost = next(n for n in tensors if "lora_B" in n)
    save_file({n: t for n, t in tensors.items() if n != lost}, weights)
    assert lost in complaint()
    save_file({**tensors, lost: torch.zeros(32, 3)}, weights)
    assert "does not fit" in complaint()
    save_file({**tensors, "base_model.model.bert.extra.weight": torch.zeros(2)}, weights)
    assert "bert.extra" in complaint()
    weights.write_bytes(good)
    for broken in ("{", "[1]", "{}", text.replace('"LORA"', '"LORRA"')):
        config.write_text(broken)
        assert "adapter_config.json" in complaint()


def test_an_adapter_of_another_base_is_refused(models: Path, saved: Path) -> None:
    with pytest.raises(ModelError, match="does not fit this base model"):
        LoraAdapter().load(tiny.load_base(models, "llama"), saved)


def test_only_the_chatter_of_imports_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(CHATTY[0])
    caplog.set_level(logging.WARNING, logger=CHATTY[0])  # the quantizers' plugin turns the library's warnings off
    with quiet_imports():
        logger.warning("kernels")
        logger.error("broken")
    logger.warning("later")
    assert [record.message for record in caplog.records] == ["broken", "later"]


def test_importing_peft_says_nothing() -> None:
    import subprocess
    import sys

    code = "from pefttool.toolkit import peft_folder; peft_folder.load_peft(); import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "kernels-community" not in done.stderr
