import json

from case_bench import Bench

LANGUAGES = "not used: column 'id'; 'translation.de' (4 rows)"


def check(bench: Bench) -> None:
    options = ("--task", "seq2seq", "-o", "task.source_lang=en", "-o", "task.target_lang=es")
    assert bench.pefttool("data", "check", bench.input(), *options).text.count(LANGUAGES) == 1

    rows = [{"id": i, "text": f"film {i}", "label": "ab"[i % 2], "meta": {"by": "me"}} for i in range(16)]
    data = bench.write("rows.jsonl", *rows)
    run = bench.run("--adapter", "lora", "--model", bench.model("bert"), "--data", data)
    told = "not used: columns 'id', 'meta'"
    assert run.notices.count(told) == 1
    for command in (["predict", run.folder, "--data", data], ["eval", run.folder, "--data", data]):
        answer = bench.pefttool(*command)
        assert answer.code == 0 and answer.err.count(told) == 1, answer.text
        assert "not used" not in answer.out
    unlabelled = bench.write("unlabelled.jsonl", *({"text": row["text"]} for row in rows))
    answer = bench.pefttool("predict", run.folder, "--data", unlabelled)
    assert len([json.loads(line) for line in answer.out.splitlines()]) == len(rows) and "not used" not in answer.err
