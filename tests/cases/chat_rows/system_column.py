from case_bench import Bench
from chat_support import encoded, tokenizer_of

from pefttool_text.chat import Chat
from pefttool_text.preference import PreferenceTuning

SAID = "answer like a pirate"
QUESTION, ANSWER = {"role": "user", "content": "what is one?"}, {"role": "assistant", "content": "it is one"}


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "chatml")
    asked = [{"role": "system", "content": SAID}, QUESTION]
    right = tokenizer.apply_chat_template([*asked, ANSWER])["input_ids"]
    sharegpt = [{"from": "human", "value": QUESTION["content"]}, {"from": "gpt", "value": ANSWER["content"]}]
    for row in (
        {"system": SAID, "messages": [QUESTION, ANSWER]},
        {"system": SAID, "conversations": sharegpt},
        {"system": SAID, "messages": [*asked, ANSWER]},
        {"messages": [{"role": "developer", "content": SAID}, QUESTION, ANSWER]},
    ):
        assert encoded(Chat(), row, tokenizer)["input_ids"] == right, row
    other = {"role": "assistant", "content": "no"}
    for row in (
        {"system": SAID, "prompt": [QUESTION], "chosen": [ANSWER], "rejected": [other]},
        {"system": SAID, "prompt": [QUESTION], "chosen": "it is one", "rejected": "no"},
        {"system": SAID, "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, other]},
        {"system": SAID, "prompt": "what is one?", "chosen": "it is one", "rejected": "no"},
    ):
        found = encoded(PreferenceTuning(), row, tokenizer)
        assert found["input_ids"][: found["chosen"]] == right, row
        assert found["input_ids"][found["chosen"] :] == tokenizer.apply_chat_template([*asked, other])["input_ids"], row
    differs = {"system": "be brief", "messages": [*asked, ANSWER]}
    assert "found another text than the system message's" in Chat().check_row(differs, Chat.Options())
