"""Which models are shown the answer, by their config; what they compute is the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pefttool.api.errors import ModelError
from pefttool.api.values import Setting
from pefttool.config.registry import Registry
from pefttool.models.pretrained import LocalPretrained
from pefttool.testing import tiny_encoder
from pefttool.toolkit import decoders

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
XLM = {"vocab_size": 50, "emb_dim": 32, "n_layers": 2, "n_heads": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SIZES),
    "bert as a decoder": ("BertConfig", {**SIZES, "is_decoder": True}),
    "roberta": ("RobertaConfig", SIZES),
    "electra": ("ElectraConfig", {**SIZES, "embedding_size": 32}),
    "bert-generation": ("BertGenerationConfig", SIZES),
    "xlm": ("XLMConfig", XLM),
    "xlm as a decoder": ("XLMConfig", {**XLM, "causal": True}),
    "xlnet": ("XLNetConfig", {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "gpt-neox, which has the switch and is none the less a decoder": ("GPTNeoXConfig", SIZES),
    "llama": ("LlamaConfig", SIZES),
    "gpt2": ("GPT2Config", {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "bart, whose decoder alone is meant": ("BartConfig", {**WIDE, "vocab_size": 50}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_who_reads_both_ways_computes_another_beginning_for_another_end(name: str) -> None:
    made, sizes = CONFIGS[name]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, made)(**sizes, **special)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        logits, other = (model(input_ids=torch.tensor([[5, 6, 7, 8, end]])).logits for end in (9, 10))
    assert decoders.reads_both_ways(config) == (not torch.allclose(logits[:, :2], other[:, :2], atol=1e-6))


@pytest.mark.parametrize("name", ["causal-lm", "chat", "preference"])
def test_a_task_that_predicts_what_follows_refuses_an_encoder(name: str, registry: Registry, tmp_path: Any) -> None:
    """Plans load abstractly, so it is said before any weight is read."""
    task = registry.tasks[name]
    with pytest.raises(ModelError, match=rf"^task '{name}' needs a decoder \(.*\), and this is an encoder \('bert'\)"):
        task.load(LocalPretrained(tiny_encoder(tmp_path), abstract=True), Setting(task.Options()))
