"""Every row's learnt tokens are those of its second answer, by plain transformers."""

from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of, trained

from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    for row in rows_of(bench.input()):
        found = encoded(Chat(), row, tokenizer)
        assert trained(found) == tokenizer(row["messages"][3]["content"] + "<|im_end|>")["input_ids"]
        turns = [{key: turn[key] for key in ("role", "content")} for turn in row["messages"]]
        assert found["input_ids"] == tokenizer.apply_chat_template(turns)["input_ids"]
    run = bench.run("--adapter", "lora", "--model", bench.model("chatml"), "--data", bench.input())
    (ready,) = run.events("DataReady")
    assert "WRONGDRAFT" in ready["preview"] and ready["preview"].count("«") == 1
    assert "6 of 12 messages of the assistant are context and not learnt" in " ".join(run.notices)
    falses = [
        {"messages": [{"train": False, **t} if t.get("weight") == 0 else t for t in row["messages"]]}
        for row in rows_of(bench.input())
    ]
    for row in falses:
        for turn in row["messages"]:
            turn.pop("weight", None)
        assert (
            trained(encoded(Chat(), row, tokenizer))
            == tokenizer(row["messages"][3]["content"] + "<|im_end|>")["input_ids"]
        )
