"""What each of these runs trains is counted in plain transformers, from the texts that its template has to write."""

from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of, trained

from pefttool import DataError
from pefttool_text.chat import Chat

#: model, input, option, and what is learnt of a row's first and last answer.
KNOWN = (
    ("qwen3", "multi.jsonl", "auto", "<think>\n\n</think>\n\n{1}<|im_end|>"),
    ("qwen3", "single.jsonl", "auto", "<think>\n\n</think>\n\n{0}<|im_end|>"),
    ("phi3", "multi.jsonl", "auto", "{0}<|end|>{1}<|end|>"),
    ("phi3", "multi.jsonl", "last", "{1}<|end|>"),
    ("mistral_v3", "system_multi.jsonl", "auto", " {1}</s>"),
    ("mistral_v3", "multi.jsonl", "all", " {0}</s> {1}</s>"),
    ("deepseek_r1", "single.jsonl", "auto", "\n</think>\n\n{0}<｜end▁of▁sentence｜>"),
    ("deepseek_r1", "multi.jsonl", "auto", "\n</think>\n\n{1}<｜end▁of▁sentence｜>"),
)


def check(bench: Bench) -> None:
    for model, name, which, learnt in KNOWN:
        tokenizer = tokenizer_of(bench, model)
        for row in rows_of(bench.input(name)):
            answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
            found = trained(encoded(Chat(), row, tokenizer, train_turns=which))
            assert tokenizer.decode(found) == learnt.format(*answers), (model, name, tokenizer.decode(found))
    tokenizer = tokenizer_of(bench, "qwen3")
    try:
        encoded(Chat(), rows_of(bench.input())[0], tokenizer, train_turns="all")
    except DataError as error:
        assert "rows.jsonl:1: the model's chat template rewrites earlier turns" in str(error)
        assert "--task chat -o task.train_turns=last" in str(error)
    else:
        raise AssertionError("an answer that cannot be learnt was asked for, and nothing was said")
    run = bench.run("--adapter", "lora", "--model", bench.model("qwen3"), "--data", bench.input())
    told = [text for text in run.notices if "earlier messages of the assistant" in text]
    assert len(told) == 1 and told[0].startswith("6 earlier messages of the assistant, in 6 rows, are context"), told
