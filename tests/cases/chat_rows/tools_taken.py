"""OpenAI's, LlamaFactory's and the older names mean the same conversation."""

import json

from case_bench import Bench
from chat_support import encoded, tokenizer_of, trained

from pefttool_text.chat import Chat

FUNCTION = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {"a": 1, "b": 2}
QUESTION, ANSWER = {"role": "user", "content": "one and two?"}, {"role": "assistant", "content": "three"}
CALL = {"name": "add", "arguments": json.dumps(ARGUMENTS)}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def calling(**call: object) -> dict[str, object]:
    return {"role": "assistant", **call}


def check(bench: Bench) -> None:
    tokenizer = tokenizer_of(bench, "qwen25")
    called = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}]
    plain = [QUESTION, {"role": "assistant", "content": "", "tool_calls": called}, RESULT, ANSWER]
    right = tokenizer.apply_chat_template(plain, tools=TOOLS)["input_ids"]
    openai = {"id": "c1", "type": "function", "function": CALL}
    sharegpt = [
        {"from": "human", "value": QUESTION["content"]},
        {"from": "function_call", "value": json.dumps({"name": "add", "arguments": ARGUMENTS})},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "three"},
    ]
    rows = [
        {"tools": TOOLS, "messages": [QUESTION, calling(content=None, tool_calls=[openai]), RESULT, ANSWER]},
        {"tools": TOOLS, "messages": [QUESTION, calling(content="", tool_calls=[openai]), RESULT, ANSWER]},
        {"tools": json.dumps(TOOLS), "messages": [QUESTION, calling(tool_calls=json.dumps([openai])), RESULT, ANSWER]},
        {"functions": [FUNCTION], "messages": [QUESTION, calling(content=None, function_call=CALL),
                                               {"role": "function", "name": "add", "content": "3"}, ANSWER]},
        {"tools": json.dumps([FUNCTION]), "conversations": sharegpt},
    ]  # fmt: skip
    call = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'
    for row in rows:
        found = encoded(Chat(), row, tokenizer)
        assert found["input_ids"] == right, row
        text = tokenizer.decode(trained(found))
        assert text == f"{call[1:]}three<|im_end|>", text
    asked = {"tools": TOOLS, "messages": plain[:3]}
    ids = tokenizer.apply_chat_template(plain[:3], tools=TOOLS, add_generation_prompt=True)["input_ids"]
    from pefttool import Row, Setting

    assert Chat().prompt_ids(Row(asked), tokenizer, Setting(Chat.Options())) == ids
    stray = {"messages": [QUESTION, RESULT, ANSWER]}
    assert "found a tool message after the user's" in Chat().check_row(stray, Chat.Options())
