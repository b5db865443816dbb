"""The card's Python, run in plain transformers and peft, beside what `pefttool predict` answers."""

import contextlib
import io
import json
from typing import Any

from case_bench import Bench

TEXT = "what is one and two?"
#: model, what its rows are made of, and the key of an answer.
RUNS: tuple[tuple[str, str, str], ...] = (("chatml", "text", "continuation"), ("yi", "messages", "answer"))


def check(bench: Bench) -> None:
    for model, column, key in RUNS:
        told = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "three"}]
        row: dict[str, Any] = {"text": f"{TEXT} three"} if column == "text" else {"messages": told}
        run = bench.run(
            *("--adapter", "lora", "--model", bench.model(model), "--data", bench.write(f"{column}.jsonl", *[row] * 8)),
            *("-o", "data.allow_overlap=true", "-o", "dtype=float32", "-o", "train.max_steps=60"),
            *(
                "-o",
                "train.epochs=60",
                "-o",
                "train.evaluate_every=60",
                "-o",
                "train.learning_rate=0.02",
                "-o",
                "generation.max_new_tokens=16",
            ),
        )
        answer = bench.pefttool("predict", run.folder, "--text", TEXT)
        assert answer.code == 0, answer.text
        card = (run.folder / "adapter" / "README.md").read_text(encoding="utf-8")
        python = card.partition("```python\n")[2].partition("```")[0].replace("Write your own text here.", TEXT)
        assert ("apply_chat_template" in python) == (column == "messages"), python
        printed = io.StringIO()
        bench.monkeypatch.chdir(run.folder / "adapter")
        with contextlib.redirect_stdout(printed):
            exec(compile(python, "card", "exec"), {})
        bench.monkeypatch.chdir(bench.folder)
        assert "three" in json.loads(answer.out)[key], answer.out
        assert printed.getvalue() == json.loads(answer.out)[key] + "\n", (printed.getvalue(), answer.out)
