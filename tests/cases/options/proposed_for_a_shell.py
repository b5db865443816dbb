"""What is proposed is typed as it stands: a shell has to hand over the columns' own names."""

import re
import shlex

from case_bench import Bench

TEXT, LABEL = "What's said", "which kind"


def check(bench: Bench) -> None:
    data = bench.write(
        "said.jsonl", *({TEXT: f"it is {n} o'clock", LABEL: "am" if n < 12 else "pm"} for n in range(24))
    )
    answer = bench.pefttool("data", "check", data)
    proposed = re.search(r"is it (--task .*) \(2 values\)\?", " ".join(answer.text.split()))
    assert proposed is not None, answer.text
    words = shlex.split(proposed.group(1))
    assert words == [
        "--task",
        "text-classification",
        "-o",
        f"task.text_column={TEXT}",
        "-o",
        f"task.label_column={LABEL}",
    ]
    assert bench.pefttool("data", "check", data, *words).code == 0
