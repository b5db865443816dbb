"""Two of ten rows have a system message, which Gemma's template does not support."""

import json

from case_bench import QUICK, Bench

from pefttool.runs.run_folder import REJECTS

WORDS = "System role not supported"


def check(bench: Bench) -> None:
    command = ("run", *QUICK, "--adapter", "lora", "--model", bench.model("gemma2"), "--data", bench.input())
    refused = bench.pefttool(*command)
    assert refused.code == 1 and "mixed_system.jsonl:" in refused.text and WORDS in refused.text, refused.text
    assert "put the system message into the first question" in refused.text and "--skip-bad-rows" in refused.text
    run = bench.run("--skip-bad-rows", *command[1 + len(QUICK) :])
    rejects = (run.folder / REJECTS).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["line"] for line in rejects) == [4, 8] and all(WORDS in line for line in rejects)
    ready = run.events("DataReady")[0]
    assert ready["train_rows"] + ready["eval_rows"] == 8
    assert bench.pefttool("eval", run.folder).code == 0  # of the rows that the run judged by
    asked = bench.pefttool("predict", run.folder, "--data", bench.input())
    assert asked.code == 1 and "mixed_system.jsonl:4" in asked.text and WORDS in asked.text, asked.text
