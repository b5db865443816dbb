"""Tiny random models, made from configs and stored on disk, and what the adapters' tests do with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pefttool import Facts
from pefttool.models import facts
from pefttool.toolkit import peft_folder

VOCABULARY, CLASSES = 101, 3
TASKS = {
    "bert": ("AutoModelForSequenceClassification", "SEQ_CLS", ("classifier",)),
    "llama": ("AutoModelForCausalLM", "CAUSAL_LM", ()),
    "gpt2": ("AutoModelForCausalLM", "CAUSAL_LM", ()),
}


class TinyTask:
    """As much of a task as `facts.inspect` asks."""

    def __init__(self, kind: str) -> None:
        self.name, self.kind = f"tiny-{kind}", kind
        self.generative = kind != "bert"
        self.peft_task_type = TASKS[kind][1]

    def unused(self, model: Any) -> tuple[str, ...]:
        return ()

    def left_alone(self, model: Any) -> tuple[str, ...]:
        return ()

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return TASKS[self.kind][2]


def configs() -> dict[str, Any]:
    from transformers import BertConfig, GPT2Config, LlamaConfig

    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {
        "bert": BertConfig(**common, intermediate_size=48, max_position_embeddings=64, num_labels=CLASSES),
        # Fewer key-value heads than heads, and the output layer tied to the embedding, as in SmolLM2.
        "llama": LlamaConfig(
            **common,
            intermediate_size=48,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        # Its linear layers are transformers' Conv1D, whose weights lie the other way round.
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        ),
    }


def store(folder: Path) -> Path:
    """Write all models under `folder`."""
    import transformers

    for kind, config in configs().items():
        torch.manual_seed(7)
        model = getattr(transformers, TASKS[kind][0]).from_config(config)
        with torch.no_grad():  # the usual 0.02 leaves outputs so small that wrong ones would look right
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
        model.save_pretrained(folder / kind)
    return folder


def load_base(folder: Path, kind: str, nf4: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A stored model; its new head is freshly drawn, as a task's would be."""
    import transformers

    arguments: dict[str, Any] = {}
    if nf4:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["classifier", "lm_head"],  # a new head trains, so it is not quantised
        )
    model = getattr(transformers, TASKS[kind][0]).from_pretrained(folder / kind, dtype=dtype, **arguments)
    if nf4:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # evaluation would repack the weights
    return model.eval()


def known(model: Any, kind: str, **more: Any) -> Facts:
    return facts.inspect(model, TinyTask(kind), **more)  # type: ignore[arg-type]


def batch(rows: int = 3, tokens: int = 9) -> dict[str, Tensor]:
    """Token ids with right padding of odd lengths; no special ids."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row in range(1, rows):
        mask[row, tokens - 2 * row :] = 0
    ids = torch.randint(5, VOCABULARY, (rows, tokens), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(model: Any, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """Outputs in eval mode; for a language model only at real tokens: `[N, V]`."""
    inputs = inputs or batch()
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model(**inputs).logits.float()
    model.train(training)
    return out[inputs["attention_mask"].bool()] if out.ndim == 3 else out


def train(model: Any, parameters: list[nn.Parameter], steps: int = 4, rate: float = 1e-2) -> list[float]:
    """Losses of a few steps of Adam, with an evaluation between every two (which must change nothing)."""
    inputs = batch()
    optimizer = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(steps):
        model.train()
        out = model(**inputs).logits.float()
        if out.ndim == 3:
            targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, -100)
            loss = nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), targets.flatten())
        else:
            loss = nn.functional.cross_entropy(out, torch.arange(len(out)) % CLASSES)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        logits(model)
    model.eval()
    return losses


def gradients_in_bfloat16(model: Any) -> dict[str, Tensor]:
    """Gradients of everything that trains after one pass under bfloat16 autocast, as on a CPU that has bfloat16."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch()).logits
    out.float().square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def heads(model: Any, kind: str) -> dict[str, nn.Parameter]:
    """The task head's parameters, made trainable as the core does."""
    found = peft_folder.head_parameters(model, TASKS[kind][2])
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def trained(model: Any, names: Any) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[n] for n in sorted(names)]


def base_bytes(model: Any) -> dict[str, bytes]:
    """The bytes of every parameter and buffer by plain name, quantisation constants among them."""
    prefix = peft_folder.root(model)
    found = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        plain = peft_folder.plain_name(name, prefix)
        if plain is not None:
            found[plain] = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            state = getattr(tensor, "quant_state", None)
            if state is not None:
                found[f"{plain}.absmax"] = state.absmax.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def save(adapter: Any, model: Any, folder: Path, kind: str) -> None:
    """The adapter's files and the head's, in the core's order."""
    adapter.save(model, folder)
    found = {n: p.detach() for n, p in peft_folder.head_parameters(model, TASKS[kind][2]).items()}
    if found:
        peft_folder.write_head(folder, found, TASKS[kind][2])


def run_without_pefttool(code: str) -> str:
    """Run `code` in a fresh interpreter, check that it never imports pefttool, return what it printed."""
    code += "\nimport sys\nassert not [m for m in sys.modules if m.startswith('pefttool')], 'pefttool was imported'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
