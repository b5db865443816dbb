import prompt_tuning
from case_bench import Bench


def check(bench: Bench) -> None:
    prompt_tuning.install(bench.folder / "site", bench.monkeypatch)
    rows = bench.write("rows.jsonl", *({"text": f"row {n}", "label": "ab"[n % 2]} for n in range(12)))
    command = ("run", "--adapter", "prompt-tuning", "--out", "out", "--data", rows)
    answer = bench.pefttool(*command, "--model", bench.model("bert"), "--task", "text-classification")
    assert answer.code == 2 and "puts 5 positions before the text, and task 'text-classification' counts" in answer.text
    assert "allowed: causal-lm, chat, preference" in answer.text, answer.text
    more = ("--model", bench.model("chatml"), "--task", "causal-lm")
    answer = bench.pefttool(*command, *more, "-o", "train.sequence_length=512", "-o", "train.packing=true")
    assert answer.code == 2 and "512 and the 5 that adapter 'prompt-tuning' takes are longer" in answer.text
    assert "use at most 507" in answer.text and "'prompt-tuning' does not keep rows apart" in answer.text, answer.text
