import json
from typing import Any

import peft
import prompt_tuning
import torch
import transformers
from case_bench import Bench
from torch.nn.functional import cross_entropy

from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config.registry import build
from pefttool.setup import attach

LINES = [f"take {n} and {n + 1}, and count what you have{'.' * (n % 4)}" for n in range(12)]
TOKENS = 5


def check(bench: Bench) -> None:
    prompt_tuning.install(bench.folder / "site", bench.monkeypatch)
    folder = bench.model("chatml")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [[*tokenizer(line)["input_ids"], tokenizer.eos_token_id] for line in LINES]
    same_step(bench, folder, rows)

    train, held_out = bench.write("train.jsonl", *({"text": t} for t in LINES[4:])), LINES[:4]
    judged = bench.write("eval.jsonl", *({"text": text} for text in held_out))
    given = ("--adapter", "prompt-tuning", "--model", folder, "--data", train, "--eval-data", judged)
    run = bench.run(
        *given,
        "--task",
        "causal-lm",
        *("-o", "dtype=float32", "-o", "train.sequence_length=256", "-o", "check=process"),
    )
    assert "answers alike without pefttool" in run.answer.text, run.answer.text
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    with torch.no_grad():
        losses = [plain_loss(model, [row]) for row in rows[:4]]
    expected = float(sum(losses)) / sum(len(row) - 1 for row in rows[:4])
    assert abs(run.after["loss"] - expected) < 1e-5 * expected, (run.after, expected)
    with torch.no_grad(), model.disable_adapter():
        before = float(sum(plain_loss(model, [row], 0) for row in rows[:4])) / sum(len(row) - 1 for row in rows[:4])
    assert abs(run.before["loss"] - before) < 1e-5 * before, (run.before, before)
    evaluated = bench.pefttool("eval", run.folder, "--json")
    assert abs(json.loads(evaluated.out)["loss"] - expected) < 1e-5 * expected
    stored = json.loads((run.folder / "adapter" / "pefttool.json").read_text(encoding="utf-8"))
    assert stored["packing"] is False, "packed, the rows behind the first would have no prompt"


def plain_loss(model: Any, rows: list[list[int]], added: int = TOKENS) -> torch.Tensor:
    """Summed cross-entropy of each token but a row's first, from all logits of plain peft; rows are padded."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, added:]
    kept = mask[:, 1:].bool()
    return cross_entropy(logits[:, :-1][kept], ids[:, 1:][kept], reduction="sum")


def same_step(bench: Bench, folder: Any, rows: list[list[int]]) -> None:
    """One step of the task through pefttool's attach, and of peft alone with the same prompt."""

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    adapter, task = prompt_tuning.PromptTuning(), build().tasks["causal-lm"]
    facts = Facts(architecture="", peft_task_type="CAUSAL_LM", seed=3)
    adapted = attach.attach(base(), adapter, adapter.Options(num_virtual_tokens=TOKENS), facts)
    (prompt,) = adapted.parameters().values()
    setting, tokenizer = Setting(task.Options()), transformers.AutoTokenizer.from_pretrained(folder)
    examples = [task.encode(Row({"text": line}), tokenizer, setting) for line in LINES]
    loss = task.loss(adapted.model, task.collate(examples, tokenizer, setting), setting)
    loss.sum.backward()

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    plain = peft.get_peft_model(base(), config)
    (other,) = [p for p in plain.parameters() if p.requires_grad]
    with torch.no_grad():
        other.copy_(prompt)
    right = plain_loss(plain, rows)
    right.backward()
    assert torch.allclose(loss.sum, right, rtol=1e-5), (loss.sum, right)
    assert prompt.grad is not None and torch.allclose(prompt.grad, other.grad, rtol=1e-4, atol=1e-6)
