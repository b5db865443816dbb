"""What is generated behind a text, as plain transformers writes it: the text and its continuation are one."""

import json

from case_bench import Bench
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ("it is three", "the plot is", "take four and")


def check(bench: Bench) -> None:
    data = bench.write("texts.jsonl", *({"text": f"{text} and the base stays {i}"} for i, text in enumerate(TEXTS * 4)))
    folder = bench.model("chatml")
    run = bench.run(
        *("--adapter", "lora", "--model", folder, "--data", data),
        *("-o", "dtype=float32", "-o", "train.max_steps=40", "-o", "train.epochs=40", "-o", "train.learning_rate=0.02"),
    )
    asked = [word for text in TEXTS for word in ("--text", text)]
    answer = bench.pefttool("predict", run.folder, *asked, "-o", "generation.max_new_tokens=12")
    assert answer.code == 0, answer.text
    found = [json.loads(line)["continuation"] for line in answer.out.splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), run.folder / "adapter").eval()
    blanks = 0
    for text, continuation in zip(TEXTS, found, strict=True):
        out = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, do_sample=False)
        assert text + continuation == tokenizer.decode(out[0], skip_special_tokens=True), (text, continuation)
        blanks += continuation != continuation.strip()
    assert blanks, "none of them begins or ends with a blank, so that this shows nothing"
