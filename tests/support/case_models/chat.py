"""Decoders that chat, each with a template of a known shape."""

from __future__ import annotations

from pathlib import Path

from case_models.building import chat_tokenizer, llama

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(folder: Path) -> None:
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    llama(folder, chat_tokenizer(special, CHATML, "<|im_start|>", "<|im_end|>", "<pad>"))


MAKERS = {"chatml": chatml}
