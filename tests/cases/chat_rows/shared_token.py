"""The tokens of a prompt, as somebody asks with it, and behind them those of the answer: in plain transformers."""

from typing import Any

from case_bench import Bench
from case_models.building import byte_level, chat_tokenizer
from chat_support import encoded
from transformers import PreTrainedTokenizerFast

from pefttool import DataError
from pefttool_text.batching import IGNORE
from pefttool_text.chat import Chat
from pefttool_text.preference import PreferenceTuning

BLANK = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}{% else %} ASSISTANT: {{ m.content }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT: {% endif %}"
)
ASKED, WORD = {"role": "user", "content": "are you sure?"}, {"role": "assistant", "content": "three"}
MORE = {"role": "assistant", "content": "it is three"}


def check(bench: Bench) -> None:
    tokenizer = chat_tokenizer(["<pad>", "<s>", "</s>"], BLANK, "<s>", "</s>", "<pad>")
    assert len(tokenizer(" three")["input_ids"]) == 1, "the blank and the word are one token"
    chat(tokenizer, [ASKED, WORD])
    chat(tokenizer, [ASKED, MORE, ASKED, WORD])
    pairs(tokenizer)
    indivisible()


def chat(tokenizer: Any, turns: list[dict[str, str]]) -> None:
    ids, labels = [], []
    for i in range(0, len(turns), 2):
        before = tokenizer.apply_chat_template(turns[:i], tokenize=False) if i else ""
        prompt = tokenizer.apply_chat_template(turns[: i + 1], tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt.removeprefix(before))["input_ids"]
        said = tokenizer(f"{turns[i + 1]['content']}</s>")["input_ids"]
        ids += asked + said
        labels += [IGNORE] * len(asked) + said
    found = encoded(Chat(), {"messages": turns}, tokenizer)
    assert (found["input_ids"], found["labels"]) == (ids, labels), tokenizer.decode(found["input_ids"])


def pairs(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    row = {"prompt": "are you sure? A: ", "chosen": "it", "rejected": "three"}
    prompt = tokenizer(row["prompt"])["input_ids"]
    found = encoded(PreferenceTuning(), row, tokenizer)
    halves = (found["input_ids"][: found["chosen"]], found["input_ids"][found["chosen"] :])
    answers = [[*tokenizer(row[name])["input_ids"], tokenizer.eos_token_id] for name in ("chosen", "rejected")]
    assert list(halves) == [prompt + answer for answer in answers]
    assert [label for label in found["labels"] if label != IGNORE] == answers[0] + answers[1]


def indivisible() -> None:
    """A tokenizer that puts a blank before whatever it is given would ask with one blank, and learn with two."""
    from tokenizers import pre_tokenizers

    inner = byte_level(["<pad>", "<s>", "</s>"])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=BLANK)
    try:
        encoded(Chat(), {"messages": [ASKED, WORD]}, tokenizer)
    except DataError as error:
        assert "the prompt ends with 'ou sure? ASSISTANT: ' and the answer begins with 'three</s>'" in str(error)
    else:
        raise AssertionError("what is learnt is not what is asked for, and nothing was said")
