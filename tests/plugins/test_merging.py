"""`pefttool merge`: the merged model answers as the adapter did, is plain transformers, and is not there otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finished_runs import RUNS, Runs
from safetensors.torch import load_file, save_file
from terminal import Terminal

from pefttool.api.errors import NotMergeable, RunError, UsageError
from pefttool.config.registry import Registry
from pefttool.export import merge, merge_in_parts, reload
from pefttool.inference.agreement import TOLERANCE

PARTS = ["lora", "dora", "lora-nf4", "lora-nf4-flat", "lora-int8", "lora-classes", "lora-pooled"]
#: Marian's positions are computed, and in no file.
WHOLE = ["head", "head-classes", "full-classes", "lora-seq2seq"]


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def runs(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(registry, tmp_path_factory.mktemp("merging"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}


def outputs(model: Any) -> torch.Tensor:
    ids = torch.arange(4, 40)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids[:, :9]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**given).logits
    return found.float()


@pytest.mark.parametrize("name", [*PARTS, *WHOLE[:2], *(slow(name) for name in WHOLE[2:])])
def test_the_merged_model_answers_as_the_adapter(name: str, runs: Runs, registry: Registry, tmp_path: Path) -> None:
    """To rounding, in float32; by transformers alone, where it has a class for the model."""
    done = merge.merge(runs[name], registry, tmp_path / "m", merge.Wanted(save_as="float32"))
    assert done.agreement.rows > 1 and done.agreement.relative < 2e-5
    assert (done.whole is None) == (name in PARTS)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    expected = outputs(reload.reload(runs[name], registry, "cpu").model)
    torch.testing.assert_close(
        outputs(reload.reload(tmp_path / "m", registry, "cpu").model), expected, atol=1e-4, rtol=0
    )
    if name.startswith("lora-pooled") or name == "head-classes":
        assert done.plain is None and (tmp_path / "m" / "head.safetensors").is_file()
        return
    assert done.plain is not None
    plain, report = getattr(transformers, done.plain).from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and plain.dtype == torch.float32
    torch.testing.assert_close(outputs(plain), expected, atol=1e-4, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("a gem")["input_ids"]


@pytest.mark.parametrize("name", ["lora-nf4", "lora-pooled", slow("dora")])
def test_in_parts_and_as_a_whole_are_the_same(
    name: str, runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.merge(runs[name], registry, tmp_path / "parts", merge.Wanted(save_as="float32"))
    monkeypatch.setattr(type(registry.adapters["lora"]), "merges_in_parts", False)
    done = merge.merge(runs[name], registry, tmp_path / "whole", merge.Wanted(save_as="float32"))
    assert done.whole is not None
    parts, whole = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    # transformers leaves out what is tied to what it writes; what was stored twice stays so.
    assert set(whole) <= set(parts)
    for tensor_name, tensor in whole.items():
        torch.testing.assert_close(parts[tensor_name], tensor, atol=2e-6, rtol=0)
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("parts", "whole")]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", ["lora-nf4", slow("lora-int8"), slow("full-classes")])
def test_sixteen_bits_are_within_the_tolerance(name: str, runs: Runs, registry: Registry, tmp_path: Path) -> None:
    done = merge.merge(runs[name], registry, tmp_path / "m", merge.Wanted(save_as="bfloat16"))
    assert 1e-4 < done.agreement.typical < done.tolerance == TOLERANCE["bfloat16"]
    assert {t.dtype for t in tensors(tmp_path / "m").values()} == {torch.bfloat16}
    assert reload.reload(tmp_path / "m", registry, "cpu").model.config.dtype is not None


def test_what_was_quantised_is_saved_in_sixteen_bits_and_the_rest_as_it_was(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    assert merge.merge(runs["lora-nf4"], registry, tmp_path / "q").dtype == "bfloat16"
    assert merge.merge(runs["lora"], registry, tmp_path / "p").dtype == "float32"


def test_into_the_original_weights(runs: Runs, registry: Registry, tmp_path: Path) -> None:
    """The quantisation error shows against the adapter as it was trained, and is no fault of the merge."""
    done = merge.merge(runs["lora-nf4"], registry, tmp_path / "m", merge.Wanted(into="original", save_as="float32"))
    assert done.agreement.relative < 2e-5
    assert done.as_trained is not None and done.as_trained.relative > 1e-2
    base, merged = tensors(runs.root / "llama"), tensors(tmp_path / "m")
    assert merged["model.norm.weight"].equal(base["model.norm.weight"])
    stored = json.loads((tmp_path / "m" / "pefttool.json").read_text())
    assert stored["quantize"] is None and stored["merged"]["quantize"] == "nf4"


def test_a_base_in_shards_stays_in_its_shards(runs: Runs, registry: Registry, tmp_path: Path) -> None:
    run, base = runs.copy("lora", tmp_path / "run"), tmp_path / "base"
    source = runs.root / "llama"
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    model.save_pretrained(base, max_shard_size="100KB")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(base)
    rebase(run, base)
    done = merge.merge(run, registry, tmp_path / "m")
    assert done.whole is None and done.agreement.relative < 2e-5
    names = [p.name for p in base.glob("*.safetensors")]
    assert len(names) > 2 and sorted(names) == sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    indices = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (base, tmp_path / "m")]
    assert indices[0]["weight_map"] == indices[1]["weight_map"]
    assert indices[0]["metadata"]["total_size"] == indices[1]["metadata"]["total_size"]


def rebase(run: Path, base: Path) -> None:
    """Let a run have been trained on the model in `base`."""
    from pefttool.files.fingerprint import weight_files

    path = run / "adapter" / "pefttool.json"
    facts = json.loads(path.read_text())
    facts["base"] |= {"reference": str(base), "path": str(base), "id": str(base), "sha256": weight_files(base)}
    path.write_text(json.dumps(facts))


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("name", "whole"), [("lora-nf4", False), slow("lora-nf4", True), slow("lora-int8", False)])
def test_a_merge_into_other_weights_is_found(
    name: str, whole: bool, runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the original weights, while the adapter knew the quantised ones: the field's own mistake."""
    quantizer = RUNS[name][3]["quantize"]
    monkeypatch.setattr(type(registry.quantizers[quantizer]), "round_trip", lambda self, weight, options: weight)
    monkeypatch.setattr(type(registry.adapters["lora"]), "merges_in_parts", not whole)
    with pytest.raises(RunError, match=r"does not answer as the adapter: difference .* is allowed"):
        merge.merge(runs[name], registry, tmp_path / "m", merge.Wanted(save_as="float32"))
    assert left(tmp_path) == []


def test_a_merge_that_loses_the_adapter_is_found(
    runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tolerance is asked for."""
    monkeypatch.setattr(merge_in_parts.Writer, "_merged", lambda self, owner: {})
    monkeypatch.setattr(merge_in_parts, "_adapted", lambda model, tensors, heads: {})
    with pytest.raises(RunError, match=r"has lost the adapter: it has -?0% of its effect"):
        merge.merge(runs["lora"], registry, tmp_path / "m", merge.Wanted(tolerance=1e9))
    assert left(tmp_path) == []


def test_a_tolerance_can_be_asked_for(runs: Runs, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="where 0 is allowed"):
        merge.merge(runs["lora"], registry, tmp_path / "m", merge.Wanted(save_as="bfloat16", tolerance=0))
    assert left(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UsageError, match="No space left on device: make room"):
        merge.merge(runs["lora"], registry, tmp_path / "m")
    assert left(tmp_path) == []


def test_the_command_says_it_in_a_few_lines(runs: Runs, terminal: Terminal, registry: Registry, tmp_path: Path) -> None:
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    prefix = str(runs["prefix"])
    terminal.run("plugins")  # what the runs printed is read
    code, out, err = terminal.run("merge", str(runs["lora"]), "--out", str(tmp_path / "m"), "--save-as", "bfloat16")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "merged into the weights that it was trained on, bfloat16, layer by layer"
    assert (
        "held out: difference " in lines[1]
        and "KL" in lines[1]
        and "top-1 agreement" in lines[1]
        and "rows" in lines[1]
    )
    assert "of what the adapter does" in lines[2]
    assert lines[-1] == f"use it:  transformers.LlamaForCausalLM.from_pretrained('{tmp_path / 'm'}')"
    code, out, err = terminal.run("predict", str(tmp_path / "m"), "--text", "a gem")
    assert code == 0 and json.loads(out)["continuation"] is not None, err
    code, _, err = terminal.run("merge", str(runs["lora"]), "--out", str(tmp_path / "m"))
    assert code == 2 and "exists and is not empty: choose another --out" in err[0]
    code, _, err = terminal.run("merge", str(tmp_path / "m"), "--out", str(tmp_path / "n"))
    assert code == 2 and "is merged already" in err[0]
    code, _, err = terminal.run("merge", prefix, "--out", str(tmp_path / "n"))
    assert code == 1 and len(err) == 1 and "'prefix' cannot be merged" in err[0] and "deliver the adapter" in err[0]
    assert left(tmp_path) == ["m"]


def test_a_merged_folder_that_was_changed_is_not_loaded(runs: Runs, registry: Registry, tmp_path: Path) -> None:
    from pefttool.api.errors import ModelError

    merge.merge(runs["lora"], registry, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not as it was merged"):
        reload.reload(tmp_path / "m", registry, "cpu")


def test_an_adapter_that_refuses_is_told_with_its_reason(
    runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, model: Any) -> Any:
        raise NotMergeable("not today; deliver the adapter folder")

    monkeypatch.setattr(type(registry.adapters["lora"]), "merge", refuses)
    with pytest.raises(NotMergeable, match="not today"):
        merge.merge(runs["lora"], registry, tmp_path / "m")
    assert left(tmp_path) == []


MEMORY = """
import resource, sys, torch
from pathlib import Path
from pefttool.config import registry; from pefttool.export import merge_in_parts, reload
opened = reload.open_folder(Path(sys.argv[1]), registry.build(), "cpu")
layout = merge_in_parts.find(opened, quantized=True)
assert not isinstance(layout, str), layout
Path(sys.argv[2]).mkdir()
from peft import LoraConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_in_parts.Writer(layout, torch.bfloat16, Path(sys.argv[2])).write()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_merging_takes_less_memory_than_a_shard(runs: Runs, tmp_path: Path) -> None:
    """A base of 80 MB in shards of 24 MB: writing the merged model takes less than one more shard of memory."""
    base, run = tmp_path / "base", runs.copy("lora", tmp_path / "run")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=260, num_key_value_heads=4, dtype="bfloat16", **sizes)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(base, max_shard_size="24MB")
    transformers.AutoTokenizer.from_pretrained(runs.root / "llama").save_pretrained(base)
    rebase(run, base)
    rank = json.loads((run / "adapter" / "adapter_config.json").read_text())["r"]
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(rank, layer.in_features)
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
    save_file(weights, run / "adapter" / "adapter_model.safetensors")
    del model
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(run), str(tmp_path / "m")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shard = max(p.stat().st_size for p in base.glob("*.safetensors"))
    assert sum(p.stat().st_size for p in base.glob("*.safetensors")) > 3 * shard
    assert int(done.stdout) * 1024 < shard
