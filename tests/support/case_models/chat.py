"""Decoders that chat, each with a template of a known shape: `chatml`, and families of tests/cases/chat_templates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from case_models.building import chat_tokenizer, llama

TEMPLATES = Path(__file__).parents[2] / "cases" / "chat_templates" / "inputs"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: family: BOS, EOS, the tokens at which generation stops, and what else its template writes.
FAMILIES: dict[str, tuple[str | None, str, tuple[str, ...], tuple[str, ...]]] = {
    "gemma2": ("<bos>", "<eos>", ("<eos>", "<end_of_turn>"), ("<start_of_turn>",)),
    "qwen25": (None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>",)),
    "qwen3": (None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>", "<think>", "</think>")),
    "phi3": ("<s>", "<|endoftext|>", ("<|endoftext|>", "<|end|>"), ("<|user|>", "<|assistant|>", "<|system|>")),
    "mistral_v3": ("<s>", "</s>", ("</s>",), ("[INST]", "[/INST]")),
    "deepseek_r1": (None, "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",),
                    ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")),
    "llama31": ("<|begin_of_text|>", "<|eot_id|>", ("<|eot_id|>",), ("<|start_header_id|>", "<|end_header_id|>")),
    "yi": ("<|startoftext|>", "<|endoftext|>", (), ("<|im_start|>", "<|im_end|>")),
}  # fmt: skip


def chatml(folder: Path) -> None:
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    llama(folder, chat_tokenizer(special, CHATML, "<|im_start|>", "<|im_end|>", "<pad>"))


def family(name: str, folder: Path) -> None:
    bos, eos, stops, more = FAMILIES[name]
    special = [token for token in dict.fromkeys(("<pad>", bos, eos, *stops, *more)) if token]
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    llama(folder, chat_tokenizer(special, template, bos, eos, "<pad>"), stops)


def unasked(folder: Path) -> None:
    """Its template writes who answers, but does not end a prompt with it."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    template = CHATML.partition("{% if add_generation_prompt %}")[0]
    llama(folder, chat_tokenizer(special, template, "<|im_start|>", "<|im_end|>", "<pad>"))


MAKERS = {"chatml": chatml, "chatml-unasked": unasked, **{name: partial(family, name) for name in FAMILIES}}
