"""adapter/README.md: what the adapter is, what it was trained on and brought, and Python that loads it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttool import __version__
from pefttool.api.task import Task
from pefttool.files import durable
from pefttool.files.model_folder import CONFIG, SINGLE
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.toolkit import loader_code, peft_folder

NAME = "README.md"
TOKENS = 'processor = transformers.AutoTokenizer.from_pretrained(ADAPTER)\ntext = "Write your own text here."\n'
LOGITS = "with torch.no_grad():\n    logits = model(**inputs).logits\n"
#: By the end of the model's class: Python that asks `model`, and prints what it answers.
USES: Mapping[str, str] = {
    "ForSequenceClassification": TOKENS
    + 'inputs = processor(text, truncation=True, max_length={length}, return_tensors="pt")\n'
    + LOGITS
    + "print(dict(zip({labels}, logits[0].tolist())))\n",
    "ForTokenClassification": TOKENS
    + "words = text.split()\n"
    + 'inputs = processor(words, is_split_into_words=True, return_tensors="pt")\n'
    + LOGITS
    + "first = [inputs.word_ids(0).index(i) for i in range(len(words))]  # a word's tag is its first token's\n"
    + "print([{labels}[int(logits[0, token].argmax())] for token in first])\n",
    "ForImageClassification": "from PIL import Image\n\n"
    + "processor = transformers.AutoImageProcessor.from_pretrained(ADAPTER)\n"
    + 'picture = Image.open("picture.png").convert("RGB")\n'
    + 'inputs = processor(images=picture, return_tensors="pt"{more})\n'
    + LOGITS
    + "print(dict(zip({labels}, logits[0].tolist())))\n",
    "ForCausalLM": TOKENS
    + "{prompt}with torch.no_grad():\n    ids = model.generate(**inputs, **{generation})\n"
    + 'print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n',
}
#: Of a class that is the task's own, by peft's name for its task.
TYPES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
PROMPT = 'inputs = processor(text, return_tensors="pt")\n'
CHAT = (
    'turns = [{"role": "user", "content": text}]\n'
    "inputs = processor.apply_chat_template(\n"
    '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
)
CARD = """---
base_model: {base}
library_name: {library}
tags: [pefttool, {adapter}, {task}]
# license: yours to choose; that of the base and of the data may say more
---

# {adapter} for {task}, on {base}

| | |
|---|---|
| base | `{reference}` (SHA-256 of its weights: `{weights}`) |
| task | {task}{labels} |
| trained on | data with the SHA-256 `{data}`, {steps} steps (delivered: step {best_step}) |
| made with | pefttool {version} |

| held out | before | after |
|---|---|---|
{metrics}

## With pefttool

```
{command}
```

## Without pefttool

{without}"""


def write(
    folder: Path,
    plan: Plan,
    base: Base,
    model: Any,
    before: Mapping[str, float],
    after: Mapping[str, float],
    **facts: Any,
) -> None:
    """Write the card of the adapter in `folder`; `model` is the adapted one. Raises OSError.

    `facts` are `data` (a hash), `steps`, `best_step` and `weights` (the hash of the base's).
    """
    python = snippet(folder, plan.task, base, model)
    if python is None:
        without = "The model has code of the task's own: only pefttool loads it.\n"
    else:
        without = f"In this folder (or with its path as `ADAPTER`), in float32:\n\n```python\n{python}```\n"
    rows = (f"| {name} | {_number(before.get(name))} | {_number(value)} |" for name, value in after.items())
    names = ", ".join(f"`{name}`" for name in base.setting.labels)
    text = CARD.format(
        base=base.local.id,
        reference=base.local.reference,
        library="peft" if (folder / peft_folder.CONFIG).is_file() else "transformers",
        adapter=plan.adapter.name,
        task=plan.task.name,
        labels=f": {names}" if names else "",
        version=__version__,
        metrics="\n".join(rows),
        command="pefttool predict . --data FILE",
        without=without,
        **facts,
    )
    durable.replace(folder / NAME, text.encode())


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def snippet(folder: Path, task: Task, base: Base, model: Any) -> str | None:
    """Python that loads the adapter without pefttool and asks it; None where only pefttool can."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    made, loaders = loader_code.constructor(plain), sorted(folder.glob("load_*.py"))
    imports, lines = ["import torch", "import transformers"], [""]
    if (folder / peft_folder.CONFIG).is_file() and made is not None:
        imports.insert(0, "import peft")
        lines += [f"base = {made}", "model = peft.PeftModel.from_pretrained(base, ADAPTER).eval()"]
    elif loaders:
        imports.insert(0, "import runpy")
        lines += [f'model = runpy.run_path(f"{{ADAPTER}}/{loaders[0].name}")["model"]']
    elif made is not None and (folder / SINGLE).is_file() and (folder / CONFIG).is_file():
        lines += [f'model = transformers.{type(plain).__name__}.from_pretrained(ADAPTER, dtype="float32").eval()']
    else:
        return None
    return "\n".join([*imports, "", 'ADAPTER = "."', *lines, "", _use(plain, task, base)])


def _use(plain: Any, task: Task, base: Base) -> str:
    """How the model is asked, for the families that have one usual way."""
    name = type(plain).__name__
    if hasattr(base.processor, "decode") and not name.endswith(tuple(USES)):
        name = TYPES.get(base.facts.peft_task_type or "", name)
    use = next((text for end, text in USES.items() if name.endswith(end)), "")
    more: Mapping[str, Any] = getattr(base.processor, "arguments", {})
    chats = task.converses and getattr(base.processor, "chat_template", None) is not None
    generation, stops = dict(base.setting.generation), list(task.stops(base.processor))
    if stops != _own_stops(plain):
        generation["eos_token_id"] = stops
    return use.format(
        length=base.setting.sequence_length,
        labels=list(base.setting.labels) or ["value"],
        more="".join(f", {name}={value!r}" for name, value in more.items()),
        prompt=CHAT if chats else PROMPT,
        generation=generation,
    )


def _own_stops(model: Any) -> list[int]:
    """The tokens at which the model stops of itself."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return sorted(found) if isinstance(found, list) else [found] if isinstance(found, int) else []
