"""What `datasets` makes of two tools with other parameters, and what is learnt of their calls."""

import json
from typing import Any

from case_bench import Bench
from chat_support import encoded, tokenizer_of, trained
from datasets import Dataset

from pefttool_text.chat import Chat


def row(tool: str, parameter: str, value: Any, declared: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": tool, "arguments": {parameter: value}}}
    parameters = {"type": "object", "properties": {parameter: declared}}
    return {
        "messages": [
            {"role": "user", "content": f"{tool} {value}"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": {"name": tool, "parameters": parameters}}],
    }


def check(bench: Bench) -> None:
    given = [row("add", "number", 4, {"type": "number"}), row("say", "words", "nine", {"type": "string"})] * 4
    Dataset.from_list(given).to_json(bench.folder / "rows.jsonl")
    Dataset.from_list(given).to_parquet(bench.folder / "rows.parquet")
    filled = bench.pefttool("data", "check", bench.folder / "rows.jsonl")
    assert filled.code == 1
    assert "rows.jsonl:1: column 'tools': found null for parameter 'words' of 'add'" in filled.text, filled.text
    read = [json.loads(line) for line in (bench.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    bench.write(
        "calls.jsonl", *({**one, "tools": json.dumps(own["tools"])} for one, own in zip(read, given, strict=True))
    )
    calls = bench.pefttool("data", "check", bench.folder / "calls.jsonl")
    assert calls.code == 1
    assert "calls.jsonl:1: message 2: found null for 'words', which 'add' does not take" in calls.text, calls.text
    parquet = bench.pefttool("data", "check", bench.folder / "rows.parquet")
    assert parquet.code == 0, parquet.text
    own = row("add", "number", None, {"type": ["number", "null"]})
    tokenizer = tokenizer_of(bench, "qwen25")
    assert '{"name": "add", "arguments": {"number": null}}' in tokenizer.decode(
        trained(encoded(Chat(), own, tokenizer))
    )
