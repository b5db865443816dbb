"""chat: the shapes of the data, and exactly which tokens are trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pefttool.api.errors import DataError
from pefttool.api.values import Row, Setting
from pefttool.inference.prompts import talks, typed
from pefttool_text import chat_rows
from pefttool_text.batching import IGNORE
from pefttool_text.chat import Chat

TASK = Chat()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens, so that character spans and token spans can be compared by eye."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel

    specials = ["<|im_start|>", "<|im_end|>", "<s>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(ByteLevel.alphabet())])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", bos_token="<s>", chat_template=CHATML
    )


def setting(length=512):
    return Setting(TASK.Options(), sequence_length=length)


OPENAI = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
ALPACA = {"instruction": "hi", "input": "", "output": "hello"}
PROMPT = {"prompt": "hi", "completion": "hello"}


@pytest.mark.parametrize("values", [OPENAI, SHAREGPT, ALPACA, PROMPT], ids=["openai", "sharegpt", "alpaca", "prompt"])
def test_the_shapes_mean_the_same(values, tokenizer):
    assert chat_rows.find(values).turns == OPENAI["messages"]
    assert TASK.check_row(values, TASK.Options()) is None
    assert TASK.recognise(list(values), [values, values]) == chat_rows.described(values)
    assert TASK.encode(Row(values), tokenizer, setting()) == TASK.encode(Row(OPENAI), tokenizer, setting())


def test_alpaca_input_and_system_become_messages():
    values = {"instruction": "add", "input": "1 2", "output": "3", "system": "be brief"}
    assert chat_rows.find(values).turns == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "add\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"text": "hi"}, "found columns 'text'"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "ends with the user"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "the user to speak first"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "found role 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "found content 3, expected text"),
        ({"messages": [OPENAI["messages"][0]] * 2 + [OPENAI["messages"][1]]}, "two user messages in a row"),
        (
            {"messages": [*OPENAI["messages"], {"role": "system", "content": "x"}]},
            "system message after the first turn",
        ),
        ({"messages": [OPENAI["messages"][0], {"role": "assistant", "content": " "}]}, "only empty assistant messages"),
        ({"instruction": "", "output": "x"}, "column 'instruction': found ''"),
        ({"instruction": "hi", "output": None}, "column 'output': found None"),
        ({"messages": [OPENAI["messages"][0], "hello"]}, "message 2: found 'hello'"),
    ],
)
def test_bad_rows_say_what_was_found_and_expected(values, complaint):
    message = TASK.check_row(values, TASK.Options())
    assert message is not None and complaint in message and "expected" in message


TURNS = OPENAI["messages"]
NAMED = {"dialog": TURNS, "text": "a title of it"}


def test_a_column_that_is_named_is_the_only_one_that_is_looked_at():
    options = TASK.Options(messages_column="dialog")
    assert TASK.check_row(NAMED, options) is None and TASK.check_input(NAMED, options) is None
    for values in (OPENAI, ALPACA):  # a file that mixes both
        for complaint in (TASK.check_row(values, options), TASK.check_input(values, options)):
            assert complaint is not None and "expected 'dialog' (name yours with -o task.messages_column" in complaint
    assert (
        TASK.check_row({"dialog": "hi", **OPENAI}, options)
        == "column 'dialog': found 'hi', expected a list of messages"
    )


@pytest.mark.parametrize("column", [None, "dialog", "text", "messages"])
def test_what_is_typed_is_understood_whatever_the_data_call_their_column(column, tokenizer):
    options = TASK.Options(messages_column=column)
    row, asked = typed(TURNS[:1]), Setting(options)
    assert talks(TASK, options)
    assert tokenizer.decode(TASK.prompt_ids(row, tokenizer, asked)) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert TASK.prompt_ids(Row({"text": "hi"}), tokenizer, asked) == TASK.prompt_ids(row, tokenizer, asked)


def test_turns_in_the_named_column_are_answered_and_not_the_text_beside_them(tokenizer):
    asked = Setting(TASK.Options(messages_column="dialog"))
    assert "title" not in tokenizer.decode(TASK.prompt_ids(Row(NAMED), tokenizer, asked))


def test_turns_that_cannot_be_answered_are_refused_before_a_model_sees_them():
    assert "found role 'robot'" in TASK.check_input(
        {"messages": [{"role": "robot", "content": "x"}], "text": "x"}, TASK.Options()
    )


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=5), i, max_size=3),
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "instruction", "output", "prompt", "text", "input"]), JSON
    )
)
def test_junk_never_raises(values):
    assert TASK.check_row(values, TASK.Options()) is None or "found" in TASK.check_row(values, TASK.Options())
    TASK.check_input(values, TASK.Options())


def trained_text(example, tokenizer):
    return "".join(tokenizer.decode([label]) for label in example["labels"] if label != IGNORE)


def test_loss_on_assistant_tokens_only_and_eos_is_trained(tokenizer):
    example = TASK.encode(Row(OPENAI), tokenizer, setting())
    assert trained_text(example, tokenizer) == "hello<|im_end|>"
    assert example["labels"][-2] == tokenizer.eos_token_id  # the newline after it is the template's, not the model's
    assert example["trained"] == example["weight"] == 6
    assert TASK.check_encoded(example, tokenizer) is None
    assert TASK.preview(example, tokenizer).endswith("<|im_start|>assistant\n«hello<|im_end|>»\n")


def test_every_assistant_turn_is_trained_and_none_of_the_users(tokenizer):
    turns = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    ]
    assert (
        trained_text(TASK.encode(Row({"messages": turns}), tokenizer, setting()), tokenizer)
        == "a1<|im_end|>a2<|im_end|>"
    )


def test_truncation_is_counted_and_may_leave_nothing(tokenizer):
    example = TASK.encode(Row(OPENAI), tokenizer, setting(length=10))
    assert (example["truncated"], example["length"], example["weight"]) == (True, 10, 0)


def test_a_double_bos_is_an_error(tokenizer):
    doubled = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        bos_token="<s>",
        chat_template="<s><s>" + CHATML,
    )
    complaint = TASK.check_encoded(TASK.encode(Row(OPENAI), doubled, setting()), doubled)
    assert complaint is not None and "two '<s>'" in complaint


def test_a_template_without_end_of_turn_is_an_error(tokenizer):
    endless = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        bos_token="<s>",
        chat_template=CHATML.replace("<|im_end|>", ""),
    )
    complaint = TASK.check_encoded(TASK.encode(Row(OPENAI), endless, setting()), endless)
    assert complaint is not None and "would not learn to stop" in complaint


def test_a_template_that_writes_an_answer_in_another_way_than_it_asks_for_it_is_refused(tokenizer):
    rewriting = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        chat_template="{{ messages|length }}" + CHATML,
    )
    with pytest.raises(DataError, match=r"d\.jsonl:4: .*asks for an answer with '1<.*writes an answer as '2<"):
        TASK.encode(Row(OPENAI, "d.jsonl", 4), rewriting, setting())


WORDS = st.text(alphabet="ab \n«é", min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_what_is_trained_is_what_the_assistant_said(tokenizer, pairs):
    turns = [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    example = TASK.encode(Row({"messages": turns}), tokenizer, setting())
    trained = tokenizer.decode([label for label in example["labels"] if label != IGNORE])
    assert trained == "".join(f"{a}<|im_end|>" for _, a in pairs)


def test_rows_with_the_same_turns_are_duplicates_whatever_their_shape():
    assert TASK.key(OPENAI, TASK.Options()) == TASK.key(ALPACA, TASK.Options()) == TASK.key(SHAREGPT, TASK.Options())


def test_a_model_without_chat_template_is_refused_when_it_is_loaded(tmp_path):
    """The plan loads too, abstractly: so this is said before any weight is read."""
    from pefttool.api.errors import ModelError
    from pefttool.models.pretrained import LocalPretrained
    from pefttool.testing import tiny_decoder

    source = LocalPretrained(tiny_decoder(tmp_path), abstract=True)
    assert TASK.load(source, setting()).processor.chat_template
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template: use an instruction-tuned model"):
        TASK.load(source, setting())
