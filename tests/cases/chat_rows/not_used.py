from case_bench import Bench

from pefttool_text.chat import Chat
from pefttool_text.preference import PreferenceTuning

QUESTION, ANSWER = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "one"}


def check(bench: Bench) -> None:
    row = {"id": 3, "system": "be brief", "tools": [], "messages": [{**QUESTION, "mood": "good"}, ANSWER]}
    read = set(Chat().reads(row, Chat.Options()))
    assert {"system", "tools", "messages[].role", "messages[].content", "messages[].weight"} <= read
    assert not {"id", "messages", "messages[].mood"} & read
    dolly = {"instruction": "a", "context": "b", "response": "c", "category": "d"}
    assert set(Chat().reads(dolly, Chat.Options())) == {"instruction", "context", "response"}
    named = {"talk": [QUESTION, ANSWER], "messages": []}
    assert {f.split("[")[0] for f in Chat().reads(named, Chat.Options(messages_column="talk"))} == {"talk"}
    pair = {"prompt": [QUESTION], "chosen": "a", "rejected": "b", "score": 1, "system": None}
    read = set(PreferenceTuning().reads(pair, PreferenceTuning.Options()))
    assert {"prompt[].content", "chosen", "rejected", "system"} <= read and not {"score", "prompt[].weight"} & read
