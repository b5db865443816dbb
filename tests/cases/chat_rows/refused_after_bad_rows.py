"""Gemma's template supports no system message: two training rows have one and are left out, and all held-out rows."""

import json

from case_bench import QUICK, Bench

from pefttool.runs.run_folder import REJECTS


def check(bench: Bench) -> None:
    out = bench.folder / "run"
    command = ("run", *QUICK, "--adapter", "lora", "--model", bench.model("gemma2"), "--skip-bad-rows", "--out", out)
    command = (*command, "--data", bench.input("mixed_system.jsonl"))
    refused = bench.pefttool(*command, "-o", f"data.eval={bench.input()}")
    assert refused.code == 1 and "no row can be used" in refused.text, refused.text
    assert str(out / REJECTS) in "".join(refused.text.split()), refused.text
    rejects = (out / REJECTS).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["line"] for line in rejects) == [4, 8]
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {REJECTS}
    again = bench.pefttool(*command)
    assert again.code == 0, again.text  # the same --out does: the folder holds nothing else
