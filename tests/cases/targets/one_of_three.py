from __future__ import annotations

from typing import Any

NAMED = ["model.layers.0.mlp.gate_proj"]


def check(bench: Any) -> None:
    from safetensors import safe_open

    data = bench.write("rows.jsonl", *[{"text": f"take four and five, and count to {i}"} for i in range(12)])
    given = ("--adapter", "lora", "--model", bench.model("glm4moe"), "--task", "causal-lm", "--data", data)
    run = bench.run(*given, "-o", f"adapter.target_modules=[{','.join(NAMED)}]")
    with safe_open(run.folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        named = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118
    assert named == set(NAMED)
