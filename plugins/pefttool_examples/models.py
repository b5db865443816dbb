"""The example models: plain folders of config, safetensors and tokenizer, made from what the carriers ship."""

from __future__ import annotations

import shutil
from pathlib import Path

from pefttool import ModelError
from pefttool_examples.carriers import MINILM, SMOLLM2, require_gguf

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_minilm(folder: Path) -> None:
    """Copy all-MiniLM-L6-v2, which its package carries as it is."""
    shutil.copytree(MINILM.file("model", ModelError), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)


def make_smollm2(folder: Path) -> None:
    """Convert SmolLM2-135M-Instruct from GGUF (4-bit Q4_1) to bfloat16 safetensors, with its chat template.

    The weights are what 4-bit storage left of the original; bfloat16 rounds the dequantised values once more.
    """
    gguf = SMOLLM2.file(SMOLLM2_GGUF, ModelError)
    require_gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that it knows as quantised: give the weights to one that never was.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _split_digits(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: object) -> None:
    """Restore the first step of SmolLM2's pre-tokenizer (`tokenizer.ggml.pre = smollm`), which transformers leaves out.

    Digits are split off before the byte-level pattern looks at spaces: without it "\\n\\n1" is three tokens, not two.
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
