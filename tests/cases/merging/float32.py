"""Every tensor of a merged model, against the base's files and the adapter's, multiplied out in float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from case_bench import Bench
from safetensors.torch import load_file
from torch import Tensor

#: Models, and whether they are merged layer by layer.
MODELS = {"base-gpt2": False, "base-mixtral": False, "chatml": True}


def check(bench: Bench) -> None:
    for name, parts in MODELS.items():
        base = bench.model(name)
        far = ("-o", "train.learning_rate=0.05", "-o", "check=none")
        run = bench.run("--adapter", "lora", "--model", base, "--data", bench.input(), *far)
        expected = _multiplied_out(base, run.folder / "adapter")
        for saved in ("float32", "bfloat16") if name == "base-gpt2" else ("float32",):
            out = bench.folder / f"{name}-{saved}"
            answer = bench.pefttool("merge", run.folder, "--save-as", saved, "--out", out, "--json")
            assert answer.code == 0, answer.text
            assert json.loads(answer.out)["in_parts"] is parts
            found = _tensors(out)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                assert found[key].dtype == getattr(torch, saved), key
                if saved == "float32":
                    torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0, msg=f"{name}: {key}")
                else:  # one rounding to 8 bits, and no more
                    torch.testing.assert_close(found[key].float(), tensor, atol=1e-6, rtol=2**-8)


def _multiplied_out(base: Path, adapter: Path) -> dict[str, Tensor]:
    config = json.loads((adapter / "adapter_config.json").read_text())
    update, merged = load_file(adapter / "adapter_model.safetensors"), _tensors(base)
    assert all(tensor.dtype == torch.float32 for tensor in merged.values())
    changed = 0
    for key, low in update.items():
        if ".lora_A." not in key:
            continue
        wide = update[key.replace(".lora_A.", ".lora_B.")]
        delta = config["lora_alpha"] / config["r"] * (wide.float() @ low.float())
        name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
        name = name if name in merged else name.removeprefix("transformer.")
        merged[name] = merged[name] + (delta.T if config["fan_in_fan_out"] else delta)
        changed += 1
    assert changed
    return merged


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
