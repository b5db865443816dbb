import json

import projects
from case_bench import Bench


def check(bench: Bench) -> None:
    run = projects.make(bench) / projects.RUN
    recipe = (run / "recipe.yaml").read_text()
    assert "train: tickets.csv" in recipe and "model: model\n" in recipe, "as it was typed"
    evaluated = bench.pefttool("eval", run, "--json")
    assert evaluated.code == 0, evaluated.text
    after = json.loads((run / "metrics.json").read_text())["after"]
    assert json.loads(evaluated.out)["accuracy"] == after["accuracy"]
    for words in (["predict", run, "--text", "late"], ["check", run], ["merge", run, "--tolerance", "1"]):
        answer = bench.pefttool(*words)
        assert answer.code == 0, answer.text
    again = bench.pefttool("run", run / "recipe.yaml", "--out", "again", "-o", "check=none")
    assert again.code == 0, again.text
    first = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (bench.folder / "elsewhere/again/adapter/adapter_model.safetensors").read_bytes() == first
    bench.monkeypatch.chdir(bench.folder)
    assert bench.pefttool("eval", "elsewhere/again").code == 0, "a run of another's recipe, from a third folder"
    bench.write("other.jsonl", *({"text": f"row {n}", "label": "ab"[n % 2]} for n in range(12)))
    flagged = bench.pefttool(
        "run", run / "recipe.yaml", "--data", "other.jsonl", "--out", "flagged", "-o", "check=none"
    )
    assert flagged.code == 0, "what is typed is meant from here: " + flagged.text
