"""Twenty-six families' templates, each with rows of nine kinds: tokens and labels against plain transformers.

The reference knows nothing of characters: the tokens of the prompt have to begin the tokens of the whole, and what
follows, up to the first end of a turn, is learnt. FAMILIES says, by what the formats document, which answers those are.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

from case_bench import Bench
from case_models.building import chat_tokenizer

from pefttool import DataError, Row, Setting
from pefttool_text import ends
from pefttool_text.chat import Chat

DAY = datetime.date(2026, 11, 30)
IGNORE = -100
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [user("what is one and two?"), answer("it is three, as you can count")]
TWO = [*ONE, user("are you sure?"), answer("yes, quite sure")]
THOUGHT = "count on from one"
RESULT = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "3"}
ROWS: dict[str, dict[str, Any]] = {
    "single": {"messages": ONE},
    "multi": {"messages": TWO},
    "system": {"messages": [SYSTEM, *ONE]},
    "system, multi": {"messages": [SYSTEM, *TWO]},
    "tools": {"messages": [ONE[0], answer("", tool_calls=[CALL]), RESULT, answer("three it is")], "tools": [ADD]},
    "call": {"messages": [ONE[0], answer("", tool_calls=[CALL])], "tools": [ADD]},
    "offered": {"messages": ONE, "tools": [ADD]},
    "reasoning": {"messages": [ONE[0], answer("it is three", reasoning_content=THOUGHT)]},
    "thinking": {"messages": [ONE[0], answer(f"<think>\n{THOUGHT}\n</think>\n\nit is three")]},
}


class Family(NamedTuple):
    """`outcomes` are those of the rows of ROWS, in their order: `all` answers are learnt, the `last`, or words of the
    refusal."""

    bos: str | None
    eos: str
    stops: tuple[str, ...]  # of generation_config.json
    outcomes: tuple[str, ...]
    arguments: str = "object"
    opens: bool = False  # the prompt opens a thought, which the template then forgets


ALTERNATE, NO_TOOLS = "conversation roles must alternate", "leaves out tools"
NO_THOUGHT, NO_CALL = "leaves out the reasoning of message 2", "leaves out the tool calls of message 2"
#: Turns of text alone: tools and reasoning are passed over, and a thought in the text is text.
PLAIN = ("all", "all", "all", "all", NO_TOOLS, NO_TOOLS, NO_TOOLS, NO_THOUGHT, "all")
CALLS = ("all", "all", "all", "all", "all", "all", "all", NO_THOUGHT, "all")
STRICT = (*PLAIN[:4], ALTERNATE, *PLAIN[5:])
NO_SYSTEM, ENDLESS = "system role not supported", "would not learn to stop"
FAMILIES = {
    "llama2": Family("<s>", "</s>", ("</s>",), STRICT),
    "llama3": Family("<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"), PLAIN),
    "llama31": Family("<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), CALLS),
    "mistral_v1": Family("<s>", "</s>", ("</s>",), ("all", "all", ALTERNATE, ALTERNATE, *STRICT[4:])),
    "mistral_v3": Family("<s>", "</s>", ("</s>",), ("all", "all", "all", "last", *CALLS[4:])),
    "mistral_tekken": Family("<s>", "</s>", ("</s>",), (*PLAIN[:4], "roles are supported", *PLAIN[5:])),
    "mixtral": Family("<s>", "</s>", ("</s>",), STRICT),
    "gemma2": Family(
        "<bos>", "<eos>", ("<eos>", "<end_of_turn>"), ("all", "all", NO_SYSTEM, NO_SYSTEM, *STRICT[4:])
    ),
    "gemma3": Family("<bos>", "<eos>", ("<eos>", "<end_of_turn>"), STRICT),
    "qwen25": Family(None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), CALLS),
    "qwen3": Family(
        None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        ("all", "last", "all", "last", "last", "all", "all", "all", "all"),
    ),
    "phi3": Family("<s>", "<|endoftext|>", ("<|endoftext|>", "<|end|>"), PLAIN),
    "phi4": Family("<|endoftext|>", "<|im_end|>", ("<|im_end|>",), PLAIN),
    "deepseek_r1": Family(
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",),
        ("all", "last", "all", "last", NO_TOOLS, NO_TOOLS, NO_TOOLS, "all", "all"), opens=True,
    ),
    "deepseek_v3": Family(
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",),
        (*PLAIN[:4], NO_TOOLS, *PLAIN[5:]), arguments="text",
    ),
    "smollm2": Family("<|im_start|>", "<|im_end|>", (), PLAIN),
    "smollm3": Family(None, "<|im_end|>", ("<|im_end|>",), PLAIN),
    "yi": Family("<|startoftext|>", "<|endoftext|>", (), PLAIN),  # the base's: nothing but the template closes a turn
    "zephyr": Family("<s>", "</s>", ("</s>",), PLAIN),
    "tinyllama": Family("<s>", "</s>", ("</s>",), PLAIN),
    "vicuna": Family("<s>", "</s>", ("</s>",), PLAIN),
    "command_r": Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", (), STRICT),
    "falcon3": Family(None, "<|endoftext|>", ("<|endoftext|>",), PLAIN),
    "granite3": Family("<|end_of_text|>", "<|end_of_text|>", ("<|end_of_text|>",), CALLS),
    "olmo2": Family("<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",), PLAIN),
    "gpt_oss": Family(
        "<|startoftext|>", "<|return|>", ("<|return|>", "<|call|>"),
        ("all", "last", "all", "last", "all", "all", "all", "all", "all"),
    ),
    "glm4": Family(  # nothing closes its last answer
        None, "<|endoftext|>", ("<|endoftext|>", "<|user|>", "<|observation|>"),
        (*(ENDLESS,) * 7, NO_THOUGHT, ENDLESS),
    ),
}  # fmt: skip


class Clock(datetime.datetime):
    """Where transformers looks for the date: the run's for the reference, and the day after it for pefttool."""

    day = DAY

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(cls.day.year, cls.day.month, cls.day.day, 1)


class Reference:
    """Plain transformers: tokens of prefixes, and nothing else."""

    def __init__(self, tokenizer: Any, family: Family, stops: set[int]) -> None:
        self.tokenizer, self.family, self.stops = tokenizer, family, stops

    def ids(self, turns: list[dict[str, Any]], tools: Any, prompt: bool = False) -> list[int]:
        said = []
        for turn in turns:
            turn = dict(turn)
            if self.family.arguments == "text" and "tool_calls" in turn:
                function = turn["tool_calls"][0]["function"]
                text = json.dumps(function["arguments"])
                turn["tool_calls"] = [{**turn["tool_calls"][0], "function": {**function, "arguments": text}}]
            said.append(turn)
        found = self.tokenizer.apply_chat_template(said, tools=tools, add_generation_prompt=prompt, return_dict=True)
        return list(found["input_ids"])

    def labelled(self, row: dict[str, Any], outcome: str) -> tuple[list[int], list[int]]:
        turns, tools = row["messages"], row.get("tools")
        spoken = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        whole = self.ids(turns, tools)
        if self.family.opens:
            said = turns[-1]["content"].rpartition("</think>")[2].strip()
            thought = THOUGHT if said != turns[-1]["content"] or "reasoning_content" in turns[-1] else ""
            text = f"{thought}\n</think>\n\n{said}{self.family.eos}"
            whole = self.ids(turns[:-1], tools, prompt=True) + self.tokenizer(text)["input_ids"]
        labels = [IGNORE] * len(whole)
        for i in spoken if outcome == "all" else spoken[-1:]:
            prompt = self.ids(turns[:i], tools, prompt=True)
            assert whole[: len(prompt)] == prompt, "this answer is not where the prompt for it says"
            end = next(k for k in range(len(prompt), len(whole)) if whole[k] in self.stops)
            labels[len(prompt) : end + 1] = whole[len(prompt) : end + 1]
        return whole, labels


def check(bench: Bench) -> None:
    assert len(FAMILIES) >= 20
    assert {path.stem for path in bench.case.inputs.glob("*.jinja")} == set(FAMILIES)
    bench.monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    tokenizer = chat_tokenizer(bench.input("special_tokens.txt").read_text(encoding="utf-8").split(), None)
    wrong = [line for name in FAMILIES for line in of_family(name, tokenizer, bench)]
    assert not wrong, "\n".join(wrong)


def of_family(name: str, tokenizer: Any, bench: Bench) -> list[str]:
    """What is wrong with a family's rows, a line each."""
    family, task = FAMILIES[name], Chat()
    tokenizer.chat_template = bench.input(f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    stops = {tokenizer.convert_tokens_to_ids(token) for token in family.stops}
    folder = Path(bench.folder)
    bench.write("generation_config.json", {"eos_token_id": sorted(stops)})
    ends.note(tokenizer, folder, None)
    closing = {"yi": "<|im_end|>"}.get(name)
    stops |= {tokenizer.eos_token_id} | ({tokenizer.convert_tokens_to_ids(closing)} if closing else set())
    if ends.of(tokenizer) != stops:
        return [f"{name}: answers end at {sorted(ends.of(tokenizer))}, not at {sorted(stops)}"]
    reference = Reference(tokenizer, family, stops)
    setting = Setting(task.Options(date=DAY), sequence_length=4096)
    wrong = []
    for (kind, row), outcome in zip(ROWS.items(), family.outcomes, strict=True):
        Clock.day = DAY + datetime.timedelta(days=1)
        try:
            assert task.check_row(row, setting.options) is None
            encoded = task.encode(Row(row, "rows.jsonl", 7), tokenizer, setting)
            complaint = task.check_encoded(encoded, tokenizer)
            if complaint is not None:
                raise DataError(f"rows.jsonl:7: {complaint}")
        except DataError as error:
            said = str(error)
            if outcome in ("all", "last") or outcome.lower() not in said.lower():
                wrong.append(f"{name}, {kind}: {said}")
            continue
        if outcome not in ("all", "last"):
            wrong.append(f"{name}, {kind}: taken, and {outcome!r} was expected: {task.preview(encoded, tokenizer)}")
            continue
        asked = task.prompt_ids(Row(row), tokenizer, setting)
        Clock.day = DAY
        ids, labels = reference.labelled(row, outcome)
        if (encoded["input_ids"], encoded["labels"]) != (ids, labels):
            wrong.append(f"{name}, {kind} ({outcome}): {task.preview(encoded, tokenizer)!r}")
        if asked != reference.ids(row["messages"][:-1], row.get("tools"), prompt=True):
            wrong.append(f"{name}, {kind}: asked with {tokenizer.decode(asked)!r}")
    return wrong
