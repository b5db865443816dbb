"""The usual stack on one job: transformers.Trainer, peft, and bitsandbytes for NF4. A process of its own.

    python benchmarks/peer.py '{"job": "lm", "train": ..., "eval": ..., "model": ..., "seed": 0, "tuned": false}'

Prints one JSON line: what `side_by_side` compares. Its defaults are the Trainer's; tuned, it computes in bfloat16 and
batches rows of similar length.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import JOBS, Job

IGNORE = -100


def main() -> None:
    given = json.loads(sys.argv[1])
    job = JOBS[given["job"]]
    import torch
    import transformers
    from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    transformers.logging.set_verbosity_error()
    transformers.set_seed(given["seed"])
    processor = AutoTokenizer.from_pretrained(given["model"])
    train, held_out = (_encode(job, processor, _read(given[part])) for part in ("train", "eval"))
    model = _model(job, given["model"])
    collate = _collator(job, processor)
    seen: dict[str, list[Any]] = {"begin": [], "end": [], "tokens": [], "trained": [], "rows": []}

    def counted(rows: list[Any]) -> Any:
        seen["tokens"].append(sum(len(row["input_ids"]) for row in rows))
        seen["rows"].append(len(rows))
        labels = (row["labels"] for row in rows)
        seen["trained"].append(sum(1 if isinstance(label, int) else len(label) - 1 for label in labels))
        return collate(rows)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seen["begin"].append(time.time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["end"].append(time.monotonic())

    tuned: dict[str, Any] = {"bf16": True, "use_cpu": True, "train_sampling_strategy": "group_by_length"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0,
            seed=given["seed"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **(tuned if given["tuned"] else {}),
        )
        trainer = Trainer(model, arguments, train_dataset=train, data_collator=counted, callbacks=[Clock()])
        began = time.monotonic()
        trainer.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(given["tuned"])):
        quality = _evaluate(job, model, collate, held_out)
    print(
        json.dumps(
            {
                "first_step": seen["begin"][0],
                "began": began,
                "end": seen["end"],
                "tokens": seen["tokens"],
                "rows": seen["rows"],
                "trained": sum(seen["trained"]),
                "quality": quality,
            }
        )
    )


def _read(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _encode(job: Job, processor: Any, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Token ids, with the end of the text trained, cut as pefttool cuts them."""
    if job.kind == "lm":
        ids = [[*processor(row["text"])["input_ids"], processor.eos_token_id][: job.sequence_length] for row in rows]
        return [{"input_ids": row, "labels": list(row)} for row in ids]
    texts = [processor(row["text"], truncation=True, max_length=job.sequence_length)["input_ids"] for row in rows]
    return [{"input_ids": ids, "labels": int(row["label"] == "positive")} for ids, row in zip(texts, rows, strict=True)]


def _collator(job: Job, processor: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    # Not DataCollatorForLanguageModeling: it drops the end of every text, which is this tokenizer's padding too.
    return DataCollatorForSeq2Seq(processor) if job.kind == "lm" else DataCollatorWithPadding(processor)


def _model(job: Job, path: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    if job.kind == "head":
        return _head_only(path)
    quantised = {}
    if job.quantize:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=job.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        quantised = {"quantization_config": config, "device_map": {"": "cpu"}}
    auto = AutoModelForCausalLM if job.kind == "lm" else AutoModelForSequenceClassification
    model = auto.from_pretrained(path, **quantised)
    if job.quantize:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        import bitsandbytes

        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                # In evaluation it would repack the weights in place and cut gradients off.
                module.support_avx512bf16_for_cpu = False
    targets = job.targets if isinstance(job.targets, str) else list(job.targets)
    task = "CAUSAL_LM" if job.kind == "lm" else "SEQ_CLS"
    config = LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=targets, task_type=task)
    return get_peft_model(model, config)


def _head_only(path: str) -> Any:
    """What pefttool's `head` trains: one layer on the mean of a frozen encoder's features, which stay evaluation's."""
    import torch
    from transformers import AutoModel

    class HeadOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(path).requires_grad_(False)
            self.classifier = torch.nn.Linear(self.backbone.config.hidden_size, 2)

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.backbone.eval()
            return self

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            logits = self.classifier((hidden * mask).sum(1) / mask.sum(1))
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    return HeadOnly()


def _evaluate(job: Job, model: Any, collate: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss a trained token, or accuracy, over the held-out rows."""
    import torch

    model.eval()
    total = count = 0.0
    order = sorted(rows, key=lambda row: len(row["input_ids"]))
    with torch.no_grad():
        for first in range(0, len(order), job.batch_size):
            batch = collate([dict(row) for row in order[first : first + job.batch_size]])
            labels = batch.pop("labels")
            output = model(**batch)
            logits = output["logits"].float()
            if job.kind != "lm":
                total, count = total + float((logits.argmax(-1) == labels).sum()), count + len(labels)
                continue
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
            )
            total, count = total + float(losses), count + float((labels[:, 1:] != IGNORE).sum())
    return total / count


if __name__ == "__main__":
    main()
