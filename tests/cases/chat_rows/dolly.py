from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of

from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    for row in rows_of(bench.input()):
        asked = f"{row['instruction']}\n\n{row['context']}"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["response"]}]
        right = tokenizer.apply_chat_template(turns)["input_ids"]
        assert encoded(Chat(), row, tokenizer)["input_ids"] == right
        read = {"question": row["instruction"], "context": row["context"], "answer": row["response"]}
        assert encoded(Chat(), read, tokenizer)["input_ids"] == right
        assert Chat().recognise(list(read), [read]) == "columns 'question', 'context', 'answer'"
    assert "column 'context': found" in Chat().check_row({**row, "context": [1]}, Chat.Options())
