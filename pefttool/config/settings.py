"""The recipe's own keys, defined once: YAML, `-o`, the JSON Schema and the docs derive from these fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pefttool.api.options import Section
from pefttool.config import sizes


class DataSettings(Section):
    train: str | None = Field(None, description="file, folder, or SOURCE:REFERENCE with the training rows")
    eval: str | None = Field(None, description="held-out rows; without it, `eval_fraction` of the training rows")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="share of the rows held out, stratified by class")
    format: str | None = Field(None, description="name of the data format; without it, it is recognised by looking")
    format_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the format that `format` names, such as the names of columns"
    )
    max_train_rows: int | None = Field(
        None, ge=1, description="use at most this many training rows, chosen by the seed"
    )
    max_eval_rows: int | None = Field(None, ge=1, description="use at most this many held-out rows, chosen by the seed")
    allow_overlap: bool = Field(
        False, description="go on where most of the held-out rows, or their file, are among the training rows"
    )
    cache: bool = Field(True, description="keep encoded rows, and features of what stays frozen, for the next run")


class TrainSettings(Section):
    epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many optimiser steps, whatever `epochs` says"
    )
    batch_size: int = Field(8, ge=1, description="rows in one forward pass on one device")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes in one optimiser step")
    sequence_length: int = Field(512, ge=8, description="tokens; longer rows are truncated, and counted")
    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate of the adapter's parameters")
    head_learning_rate: float | None = Field(None, gt=0, description="of a new task head; default: `learning_rate`")
    scheduler: Literal["linear", "cosine", "constant"] = Field("linear", description="shape after warm-up")
    warmup: float = Field(0.05, ge=0, description="share of all steps (below 1), or a number of steps")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay on matrices; never on biases or norms")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what to do about a step whose loss or gradient is not finite; it is never applied"
    )
    optimizer: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        "adamw", description="optimiser of the trained parameters; 8-bit and paged ones are those of bitsandbytes"
    )
    evaluate_every: int | None = Field(None, ge=1, description="optimiser steps between evaluations; default: an epoch")
    keep_best: bool = Field(True, description="deliver the best evaluation's adapter; false: the last step's")
    patience: int | None = Field(None, ge=1, description="stop after this many evaluations without a better one")
    checkpoint_every: int | None = Field(
        None, ge=1, description="optimiser steps between checkpoints; default: by time alone"
    )
    checkpoint_minutes: float | None = Field(
        10.0, gt=0, description="minutes after which a step is followed by a checkpoint; null: never by time"
    )
    keep_checkpoints: int = Field(2, ge=1, description="older checkpoints are removed, once there are this many newer")
    packing: bool | None = Field(
        None,
        description="rows of a batch lie one behind another instead of being padded, attention isolated; default:"
        " where the model is found to keep them apart",
    )
    batch_tokens: int | None = Field(
        None, ge=8, description="fill every forward pass up to this many tokens (padding counts) instead of batch_size"
    )
    gradient_checkpointing: Literal["none", "non-reentrant", "reentrant"] = Field(
        "none", description="recompute activations in the backward pass, by either of PyTorch's ways"
    )
    compile: bool = Field(False, description="torch.compile the blocks but their attention: a slow first step")
    rehearse: bool = Field(
        True, description="before step 1, try the longest batch, an evaluation batch and a save; nothing of it remains"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the split, the order, the initialisation and dropout")


def _amount(text: str) -> str:
    sizes.parse(text)
    return text


class MemorySettings(Section):
    budget: Annotated[str, AfterValidator(_amount)] | None = Field(
        None, description="the most memory a run may take, such as 6GiB: settings are chosen to keep it"
    )
    stream: bool = Field(False, description="fetch frozen blocks as they are needed, one ahead")
    offload: tuple[Literal["activations", "embeddings"], ...] = Field(
        (), description="what is kept in host memory: activations; embeddings, and the output layer with them"
    )


class GenerationSettings(Section):
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    do_sample: bool = Field(False, description="draw answers at random instead of taking the most likely token")
    temperature: float = Field(1.0, gt=0, description="flatness of the distribution that answers are drawn from")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the most likely tokens of this total probability")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1, tokens that already occurred become less likely")


class Document(Section):
    """A recipe as a document. `adapter`, `task` and `quantize` carry `name` and the plugin's own options."""

    model: str | None = Field(None, description="folder, ORG/NAME[@REVISION] on the hub, or SOURCE:REFERENCE")
    trust_remote_code: str | None = Field(
        None, description="REPO@REVISION of a model whose own Python code may run; without it, no model's does"
    )
    quantize: dict[str, Any] | None = Field(
        None, description="`name` and the options of a quantizer for the frozen weights; null: they stay as they are"
    )
    adapter: dict[str, Any] = Field(default_factory=dict, description="`name` and the adapter's options")
    task: dict[str, Any] = Field(default_factory=dict, description="`name` and the task's options")
    data: DataSettings = Field(default_factory=DataSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the frozen weights and the arithmetic"
    )
    check: Literal["process", "files", "none"] = Field(
        "process",
        description="how a saved adapter is checked: `files` compares it with what was trained, bit for bit, and"
        " `pefttool run` loads it again and compares its answers; with `process` also in a process without pefttool,"
        " as `pefttool check` does",
    )
    out: str | None = Field(None, description="the run folder; default: runs/ADAPTER-TASK-NUMBER")
