from __future__ import annotations

from typing import Any

ROWS = [
    {"source": f"take four and five, and count to {i}" + " and nine" * (i % 4), "target": "and their sum" * (1 + i % 3)}
    for i in range(18)
]


def check(bench: Any) -> None:
    import peft
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    data, held_out = bench.write("rows.jsonl", *ROWS[:12]), bench.write("held-out.jsonl", *ROWS[12:])
    for kind in ("m2m100", "blenderbot", "fsmt"):
        folder = bench.model(kind)
        given = ("--adapter", "lora", "--model", folder, "--task", "seq2seq", "--data", data)
        run = bench.run(
            *given, "-o", f"data.eval={held_out}", "-o", "dtype=float32", "-o", "generation.max_new_tokens=2"
        )
        base = AutoModelForSeq2SeqLM.from_pretrained(folder)
        plain = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        total, count = 0.0, 0
        for row in ROWS[12:]:  # one by one: no padding, no -100
            labels = torch.tensor([[*tokenizer(row["target"]).input_ids, tokenizer.eos_token_id]])
            start = torch.tensor([[base.config.decoder_start_token_id]])
            with torch.no_grad():
                logits = plain(
                    input_ids=torch.tensor([tokenizer(row["source"]).input_ids]),
                    decoder_input_ids=torch.cat([start, labels[:, :-1]], 1),
                    use_cache=False,  # FSMT masks what follows only then
                ).logits
            total += float(cross_entropy(logits[0], labels[0], reduction="sum"))
            count += labels.shape[1]
        assert abs(total / count - run.after["loss"]) < 1e-5, (kind, total / count, run.after)
        assert abs(run.before["loss"] - run.after["loss"]) > 1e-3
