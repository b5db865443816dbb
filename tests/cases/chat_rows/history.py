from case_bench import Bench
from chat_support import encoded, rows_of, tokenizer_of, trained

from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    for row in rows_of(bench.input()):
        ((question, answer),) = row["history"]
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        learnt = [tokenizer(f"{text}<|im_end|>")["input_ids"] for text in (answer, row["output"])]
        found, last = encoded(Chat(), row, tokenizer), encoded(Chat(), row, tokenizer, train_turns="last")
        assert found["input_ids"] == last["input_ids"] == tokenizer.apply_chat_template(turns)["input_ids"]
        assert (trained(found), trained(last)) == (learnt[0] + learnt[1], learnt[1])
    assert "expected a list of [question, answer]" in Chat().check_row({**row, "history": ["x"]}, Chat.Options())
