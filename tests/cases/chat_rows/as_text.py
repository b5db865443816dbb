import json

from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of

from pefttool_text.chat import Chat
from pefttool_text.preference import PreferenceTuning


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    for row in rows_of(bench.input()):
        turns = json.loads(row["messages"])
        assert encoded(Chat(), row, tokenizer)["input_ids"] == tokenizer.apply_chat_template(turns)["input_ids"]
    assert bench.pefttool("data", "check", bench.input()).code == 0
    # A text that happens to be JSON is a text.
    pair = {"prompt": "[INST] count", "chosen": "[1, 2, 3]", "rejected": "[]"}
    found = encoded(PreferenceTuning(), pair, tokenizer)
    turns = [{"role": "user", "content": "[INST] count"}, {"role": "assistant", "content": "[1, 2, 3]"}]
    assert found["input_ids"][: found["chosen"]] == tokenizer.apply_chat_template(turns)["input_ids"]
