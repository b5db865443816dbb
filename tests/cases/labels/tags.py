import torch
from case_bench import Bench
from pytest import approx
from transformers import AutoModelForTokenClassification, AutoTokenizer

NAMES = ("anna", "karl", "tom", "paris")
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC"]


def check(bench: Bench) -> None:
    rows = [
        {"tokens": [first, second, "lives", "in", "new", "york"], "tags": TAGS} for first in NAMES for second in NAMES
    ]
    model = bench.model("tagger")
    data = bench.write("rows.jsonl", *rows)
    run = bench.run("--adapter", "lora", "--model", model, "--data", data, "-o", "dtype=float32")
    for sample in run.samples:
        tags, shares = plain(model, sample["row"]["tokens"])
        assert sample["before"]["tags"] == tags
        assert sample["before"]["scores"] == approx(shares, abs=1e-5)


def plain(folder: object, words: list[str]) -> tuple[list[str], list[float]]:
    """The likeliest tag at the first token of each word, and its probability."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    places = [encoded.word_ids().index(word) for word in range(len(words))]
    with torch.no_grad():
        best = model.eval()(**encoded).logits[0, places].softmax(-1).max(-1)
    return [model.config.id2label[i] for i in best.indices.tolist()], best.values.tolist()
