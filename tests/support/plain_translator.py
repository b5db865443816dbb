"""What plain transformers makes of texts and their translations: the right values for the cases about languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


def translated(
    folder: Path, languages: tuple[str, str], pairs: Sequence[tuple[str, str]], forced: bool
) -> tuple[float, list[str]]:
    """(mean loss of a target's token, answers of at most 8 tokens) of a model's folder, one pair at a time.

    `forced`: the language is an answer's first token (else the decoder starts with it).
    """
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang=languages[0], tgt_lang=languages[1])
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    told = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(languages[1])} if forced else {}
    total, count, answers = 0.0, 0, []
    for source, target in pairs:
        row = tokenizer(source, text_target=target, return_tensors="pt")
        inputs = {name: row[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            loss = model(**row).loss
            written = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1, **told)
        total, count = total + float(loss) * row["labels"].numel(), count + row["labels"].numel()
        answers.append(tokenizer.decode(written[0], skip_special_tokens=True).strip())
    return total / count, answers
