"""Decoders with routed experts: transformers 5 keeps a layer's experts in one tensor, beside linear layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from case_models.building import chat_tokenizer, store
from case_models.chat import CHATML

#: Every config takes these, if it has them.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
DENSE_FIRST = {"first_k_dense_replace": 1, "n_shared_experts": 1}
#: The classes of transformers by their first name, and what their configs are given besides.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dbrx": (
        "Dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
            **dict.fromkeys(SIZES),
        },
    ),
    "deepseekv2": ("DeepseekV2", {**ROUTED, **LATENT, **DENSE_FIRST}),
    "deepseekv3": ("DeepseekV3", {**ROUTED, **LATENT, **DENSE_FIRST}),
    "dots1": ("Dots1", {**ROUTED, **DENSE_FIRST}),
    "ernie45moe": ("Ernie4_5_Moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
    "flexolmo": ("FlexOlmo", FOUR),
    "glm4moe": ("Glm4Moe", {**ROUTED, **DENSE_FIRST}),
    "gptoss": ("GptOss", {**LOCAL, "sliding_window": 16}),
    "granitemoe": ("GraniteMoe", LOCAL),
    "granitemoeshared": ("GraniteMoeShared", {**LOCAL, "shared_intermediate_size": 24}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **LOCAL,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
        },
    ),
    "glm4moelite": ("Glm4MoeLite", {**ROUTED, **LATENT, **DENSE_FIRST}),
    "exaonemoe": ("ExaoneMoe", {**FOUR, "num_shared_experts": 1, "first_k_dense_replace": 1}),
    "minimaxm2": ("MiniMaxM2", LOCAL),
    "solaropen": ("SolarOpen", {**ROUTED, "n_shared_experts": 1}),
    "hunyuanmoe": ("HunYuanMoEV1", {"num_experts": 4, "moe_topk": 2}),
    "jamba": (
        "Jamba",
        {**LOCAL, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "jetmoe": ("JetMoe", {**LOCAL, "kv_channels": 8, "num_key_value_heads": 2}),
    "lfm2moe": (
        "Lfm2Moe",
        {**FOUR, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "llama4text": ("Llama4", {**LOCAL, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}),
    "mixtral": ("Mixtral", LOCAL),
    "minimax": ("MiniMax", {**LOCAL, "layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    "olmoe": ("Olmoe", FOUR),
    "phimoe": ("Phimoe", LOCAL),
    "qwen2moe": ("Qwen2Moe", {**FOUR, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2}),
    "qwen3moe": ("Qwen3Moe", {**FOUR, "mlp_only_layers": [0]}),
    "qwen3next": (
        "Qwen3Next",
        {
            **FOUR,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [0],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
}
CONFIGS = {"Llama4": "Llama4TextConfig"}


def routed(kind: str, folder: Path) -> None:
    """A decoder of this kind, its weights drawn widely enough that each expert answers otherwise."""
    import torch
    import transformers

    tokenizer = chat_tokenizer(["<pad>", "<|im_start|>", "<|im_end|>"], CHATML, None, "<|im_end|>", "<pad>")
    name, more = KINDS[kind]
    given = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    given |= {**SIZES, **more}
    given = {key: value for key, value in given.items() if value is not None}
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**given)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    store(folder, model, tokenizer)


MAKERS = {kind: partial(routed, kind) for kind in KINDS}
