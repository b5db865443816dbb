"""Gemma's turns end with a token of generation_config, and a base model's with one that only its template knows."""

from typing import Any

from case_bench import Bench
from chat_support import encoded, loaded, rows_of, trained

from pefttool import Row, Setting
from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    for name, end in (("gemma2", "<end_of_turn>"), ("yi", "<|im_end|>")):
        found = loaded(bench, name)
        last = found.processor.convert_tokens_to_ids(end)
        for row in rows_of(bench.input()):
            example = encoded(Chat(), row, found.processor)
            text = row["messages"][1]["content"]
            assert trained(example) == found.processor(text, add_special_tokens=False)["input_ids"] + [last]
            assert Chat().check_encoded(example, found.processor) is None
        asked: dict[str, Any] = {}
        generate = found.model.generate
        bench.monkeypatch.setattr(found.model, "generate", lambda **given: (asked.update(given), generate(**given))[1])  # noqa: B023
        setting = Setting(Chat.Options(), generation={"max_new_tokens": 2, "do_sample": False})
        Chat().predict(found.model, [Row(row)], found.processor, setting)
        eos = found.processor.eos_token_id
        assert asked["eos_token_id"] == sorted({last, eos})
    run = bench.run("--adapter", "lora", "--model", bench.model("gemma2"), "--data", bench.input())
    assert run.events("DataReady")[0]["preview"].rstrip().endswith("<end_of_turn>»")
