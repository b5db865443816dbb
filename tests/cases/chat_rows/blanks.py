"""Labels against prefixes of tokens, in plain transformers, where offsets leave blanks out."""

from case_bench import Bench
from case_models.building import chat_tokenizer
from case_models.chat import CHATML
from chat_support import encoded
from tokenizers import processors

from pefttool_text.batching import IGNORE
from pefttool_text.chat import Chat
from pefttool_text.preference import PreferenceTuning

ANSWERS = ("if three:\n    return 4 and 5\n\n    # 😀  two blanks", "  - one\n  - two 你好")


def check(bench: Bench) -> None:
    tokenizer = chat_tokenizer(["<pad>", "<|im_start|>", "<|im_end|>"], CHATML, None, "<|im_end|>", "<pad>")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turns = []
    for answer in ANSWERS:
        turns += [{"role": "user", "content": "and now?"}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    labels = [IGNORE] * len(ids)
    for i in (1, 3):
        start = len(tokenizer.apply_chat_template(turns[:i], add_generation_prompt=True, return_dict=True)["input_ids"])
        end = ids.index(tokenizer.eos_token_id, start) + 1
        labels[start:end] = ids[start:end]
    found = encoded(Chat(), {"messages": turns}, tokenizer)
    assert (found["input_ids"], found["labels"]) == (ids, labels), Chat().preview(found, tokenizer)
    tokenizer.chat_template = None
    row = {"prompt": "and now?\n", "chosen": ANSWERS[0], "rejected": ANSWERS[1]}
    found = encoded(PreferenceTuning(), row, tokenizer)
    learnt = tokenizer.decode([label for label in found["labels"] if label != IGNORE])
    assert learnt == "<|im_end|>".join([*ANSWERS, ""]), learnt
