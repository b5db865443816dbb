"""A whole LoRA training step on the CPU: our layers and loss, and bitsandbytes + peft; freed memory kept, or not.

python benchmarks/step.py                     the shapes of SmolLM2-135M with random weights, 512 tokens
python benchmarks/step.py --tokens 1024 --rounds 3

Every contestant is a process of its own, as the allocator's settings are a process's; they take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

#: How weights are stored, whose layers, whose loss, and what becomes of freed memory.
CONTESTANTS = {
    "nf4, bitsandbytes + peft": ("nf4", "library", "whole", "given-back"),
    "nf4, our layers": ("nf4", "ours", "whole", "given-back"),
    "nf4, our layers and loss": ("nf4", "ours", "chunked", "given-back"),
    "nf4, our layers and loss, freed memory kept": ("nf4", "ours", "chunked", "kept"),
    "nf4, bitsandbytes + peft, freed memory kept": ("nf4", "library", "whole", "kept"),
    "bfloat16, peft": ("none", "library", "whole", "given-back"),
    "bfloat16, our loss, freed memory kept": ("none", "library", "chunked", "kept"),
}
STEPS, WARM = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contestant", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(*arguments.contestant, arguments.tokens, arguments.layers)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name, contestant in CONTESTANTS.items():
            command = [sys.executable, __file__, "--tokens", str(arguments.tokens), "--layers", str(arguments.layers)]
            done = subprocess.run([*command, "--contestant", *contestant], capture_output=True, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':46}{'seconds a step':>15}{'page faults':>13}{'peak MiB':>10}")
    for name, found in results.items():
        seconds, faults, peak = (median(run[key] for run in found) for key in ("seconds", "faults", "peak"))
        print(f"{name:<46}{seconds:>15.3f}{faults:>13.0f}{peak:>10.0f}")


def measure(storage: str, layers: str, loss: str, freed: str, tokens: int, depth: int) -> dict[str, float]:
    """Median seconds and page faults of a step, and the process's peak memory in MiB."""
    if freed == "kept":
        from pefttool.setup import allocator

        assert allocator.keep_freed_memory()
    import torch

    model = adapted(storage, layers, depth).train()
    ids = torch.randint(0, 49152, (1, tokens), generator=torch.Generator().manual_seed(0))
    seconds, faults = [], []
    for _ in range(STEPS):
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        (chunked if loss == "chunked" else whole)(model, ids).backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(seconds[WARM:]), "faults": median(faults[WARM:]), "peak": peak}


def whole(model: Any, ids: Any) -> Any:
    """The model's own loss, from every logit in float32."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def chunked(model: Any, ids: Any) -> Any:
    """The same figure, without the logits."""
    from pefttool_kernels.cross_entropy import linear_cross_entropy

    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return linear_cross_entropy(hidden.flatten(0, 1), causal.lm_head.weight, ids[:, 1:].flatten(), reduction="mean")


def adapted(storage: str, layers: str, depth: int) -> Any:
    """SmolLM2-135M's shapes, random weights, LoRA of rank 16 on every linear layer of the backbone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from pefttool_kernels import lora, modules
    from pefttool_kernels.timing import measure

    torch.manual_seed(0)
    shapes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=49152, num_hidden_layers=depth, tie_word_embeddings=True, **shapes)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    if storage != "none":
        for name, module in list(model.model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.model.set_submodule(name, measure.quantised(storage, module.weight.data))
        model.is_loaded_in_4bit = True
    if layers == "ours":
        modules.fuse(model)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    if layers == "ours":
        assert lora.fuse(model)
    return model


if __name__ == "__main__":
    main()
