from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of

from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    for row in rows_of(bench.input()):
        turns = [{**turn, "content": turn["content"][0]["text"]} for turn in row["messages"]]
        assert encoded(Chat(), row, tokenizer)["input_ids"] == tokenizer.apply_chat_template(turns)["input_ids"]
    question, answer = row["messages"]
    two = {**question, "content": [{"type": "text", "text": text} for text in ("read this:", "a text")]}
    turns[0] = {"role": "user", "content": "read this:\na text"}
    found = encoded(Chat(), {"messages": [two, answer]}, tokenizer)
    assert found["input_ids"] == tokenizer.apply_chat_template(turns)["input_ids"]
    seen = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, answer]}
    assert "found a part 'image_url', expected text in parts of type 'text'" in Chat().check_row(seen, Chat.Options())
