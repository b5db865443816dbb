"""Run folders and adapters that are damaged, or another's: what `pefttool predict` and `eval` say to them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import good_runs
from bad_entry import Entry

Spoil = Callable[[Path], object]
FACTS, CONFIG, WEIGHTS = "adapter/pefttool.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
HEAD = "adapter/head.safetensors"


def spoilt(
    name: str, spoil: Spoil, *words: str, adapter: str = "lora", real: bool = False, verb: tuple[str, ...] = ()
) -> Entry:
    """A finished run's folder, after `spoil(folder)`."""

    def make(folder: Path) -> list[str]:
        run = good_runs.finished(folder, adapter)
        spoil(run)
        return [*(verb or ("predict", "--text", "a")), str(run)]

    return Entry(f"adapter/{name}", make, words, real)


def write(name: str, content: str | bytes) -> Spoil:
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(name: str) -> Spoil:
    return lambda run: (run / name).unlink()


def cut(name: str, keep: int) -> Spoil:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:keep])


def change(name: str, **changes: Any) -> Spoil:
    """Keys of a JSON file; None takes one away."""

    def spoil(run: Path) -> None:
        document = {**json.loads((run / name).read_text()), **changes}
        gone = {key for key, value in changes.items() if value is None}
        (run / name).write_text(json.dumps({k: v for k, v in document.items() if k not in gone}))

    return spoil


def based(**changes: Any) -> Spoil:
    def spoil(run: Path) -> None:
        base = json.loads((run / FACTS).read_text())["base"]
        change(FACTS, base={**base, **changes})(run)

    return spoil


def tensors(name: str, alter: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(run: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(run / name)
        alter(held)
        save_file({n: t.contiguous() for n, t in held.items()}, run / name, {"format": "pt"})

    return spoil


def _shrink(held: dict[str, Any]) -> None:
    first = sorted(held)[0]
    held[first] = held[first][:1]


def append_row(run: Path) -> None:
    """To a copy of the data that the run was made of."""
    rows = good_runs.rows(run.parent)
    own = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"(?m)^( +train:).*rows\.jsonl.*$", rf"\1 {json.dumps(str(rows))}", own))
    with rows.open("a") as stream:
        stream.write(json.dumps({"text": "i", "label": "x"}) + "\n")


def _facts() -> Iterator[Entry]:
    again = "restore"
    yield spoilt("no facts", remove(FACTS), "no finished run", "pefttool.json", "give the folder", real=True)
    yield spoilt("empty facts", write(FACTS, ""), "pefttool.json", "cannot be read", again)
    yield spoilt("truncated facts", cut(FACTS, 200), "pefttool.json", "cannot be read", again)
    yield spoilt("facts of a list", write(FACTS, "[]"), "pefttool.json", "expected an object", again)
    yield spoilt("binary facts", write(FACTS, bytes(range(256))), "pefttool.json", again)
    yield spoilt("facts nested too deeply", write(FACTS, "[" * 100_000), "pefttool.json", again)
    for key in ("task", "adapter", "base", "labels", "dtype", "head_modules", "seed", "generation"):
        yield spoilt(f"no {key}", change(FACTS, **{key: None}), "pefttool.json", repr(key), again)
    yield spoilt("a task of numbers", change(FACTS, task=5), "pefttool.json", "'task'", again)
    yield spoilt("labels in words", change(FACTS, labels="xy"), "pefttool.json", "'labels'", again)
    yield spoilt("a base in words", change(FACTS, base="bert"), "pefttool.json", "'base'", again)
    yield spoilt("a base without a reference", change(FACTS, base={}), "pefttool.json", "'reference'", again)
    yield spoilt("a length in words", change(FACTS, sequence_length="long"), "pefttool.json", "'sequence_length'")
    yield spoilt("an unknown task", change(FACTS, task="chatt"), "unknown task 'chatt'", "did you mean 'chat'")
    yield spoilt("an unknown adapter", change(FACTS, adapter="../x"), "unknown adapter '../x'", "allowed:")
    yield spoilt("an unknown quantizer", change(FACTS, quantize="nf5"), "unknown quantizer 'nf5'", "allowed:")
    yield spoilt("an unknown dtype", change(FACTS, dtype="float7"), "pefttool.json", "'dtype'", again)
    yield spoilt("options of another task", change(FACTS, task_options={"acme": 1}), "task_options.acme: unknown key")
    yield spoilt("a base that is gone", based(reference="/no/such/base"), "'/no/such/base'", "no such folder")
    yield spoilt("another base", based(sha256="0" * 64), "is not the one this adapter was trained on", again)
    yield spoilt("more classes", change(FACTS, labels=["x", "y", "z"]), "classifier.weight", "load it onto the base")


def _files() -> Iterator[Entry]:
    again = "copy the whole adapter folder again"
    yield spoilt("no config", remove(CONFIG), "adapter")
    yield spoilt("a truncated config", cut(CONFIG, 50), "adapter_config.json", "restore the adapter folder")
    yield spoilt("a config of a list", write(CONFIG, "[]"), "adapter_config.json", "restore the adapter folder")
    yield spoilt("a config of no method", change(CONFIG, peft_type=None), "`peft_type`", "restore the adapter folder")
    yield spoilt("an unknown method", change(CONFIG, peft_type="ACME"), "'ACME'", "restore the adapter folder")
    yield spoilt("another method", change(CONFIG, peft_type="XLORA"), "'XLORA'", "restore the adapter folder")
    imports = {"megatron_config": {"a": 1}, "megatron_core": "os"}
    yield spoilt("a module to import", change(CONFIG, **imports), "'megatron_config'", "remove it")
    yield spoilt("another rank", change(CONFIG, r=3), "does not fit this base model", "load it onto the base")
    yield spoilt("a rank in words", change(CONFIG, r="many"), "does not fit this base model")
    yield spoilt("modules of another model", change(CONFIG, target_modules=["c_attn"]), "does not fit this base model")
    yield spoilt("no weights", remove(WEIGHTS), "adapter_model.safetensors is missing", again)
    yield spoilt("renamed weights", lambda run: (run / WEIGHTS).rename(run / "adapter/w.safetensors"), "missing", again)
    yield spoilt("truncated weights", cut(WEIGHTS, -10), "adapter_model.safetensors cannot be read", "restore")
    yield spoilt("empty weights", write(WEIGHTS, b""), "adapter_model.safetensors cannot be read", "restore")
    yield spoilt("a pickle for weights", write(WEIGHTS, b"\x80\x04K\x01."), "cannot be read", "restore")
    yield spoilt("a missing tensor", tensors(WEIGHTS, lambda t: t.pop(sorted(t)[0])), "lacks", "copy the whole adapter")
    more = tensors(WEIGHTS, lambda t: t.update(acme=t[sorted(t)[0]].clone()))
    yield spoilt("a tensor too many", more, "acme", "no place for")
    yield spoilt("another shape", tensors(WEIGHTS, _shrink), "adapter")
    yield spoilt("no head", remove(HEAD), "head.safetensors is missing", again, adapter="head")
    yield spoilt("a truncated head", cut(HEAD, 30), "head.safetensors cannot be read", "restore", adapter="head")
    yield spoilt("a head of another shape", tensors(HEAD, _shrink), "head.safetensors", "trained on", adapter="head")
    yield spoilt("a head without a tensor", tensors(HEAD, lambda t: t.pop(sorted(t)[0])), "lacks", adapter="head")


def _verbs() -> Iterator[Entry]:
    def nothing(run: Path) -> None:
        pass

    def predict(name: str, verb: tuple[str, ...], *words: str) -> Entry:
        return spoilt(name, nothing, *words, verb=verb)

    yield predict("neither data nor text", ("predict",), "either --data FILE or --text TEXT")
    yield predict("both data and text", ("predict", "--text", "a", "--data", "x"), "either --data FILE or --text TEXT")
    yield predict("no such data", ("predict", "--data", "no.jsonl"), "'no.jsonl'", "no such file or folder")
    yield predict("an unknown device", ("predict", "--text", "a", "--device", "gpu"), "'gpu'", "cpu")
    yield predict("a dtype that is none", ("predict", "--text", "a", "--dtype", "float8"), "'float8'", "float32")
    yield predict("other settings", ("predict", "--text", "a", "-o", "train.epochs=1"), "only generation.*")
    yield predict("a setting of words", ("predict", "--text", "a", "-o", "generation=x"), "generation.KEY=VALUE")
    yield predict("an empty text", ("predict", "--text", ""), "'text'", "found ''")
    yield predict("an unknown format", ("predict", "--data", "run/recipe.yaml", "--format", "x"), "'x'", "allowed:")
    yield predict("chat with a classifier", ("chat",), "does not talk", "use pefttool predict")
    yield spoilt("no recipe", remove("recipe.yaml"), "recipe.yaml", "give --data FILE", verb=("eval",))
    yield spoilt("a broken recipe", write("recipe.yaml", "a: ["), "recipe.yaml:1", "mend that line", verb=("eval",))
    yield from (
        spoilt(
            f"{verb} of rows that became more",
            append_row,
            "rows.jsonl is not what",
            "was split from",
            "restore it, or give --data FILE",
            verb=(verb,),
        )
        for verb in ("eval", "check", "merge")
    )

    def other(run: Path) -> None:
        (run.parent / "other.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "zzz"}\n')

    unknown = ("other.jsonl:2", "class 'zzz' is not among the training rows' (x, y)", "mend it")
    yield spoilt("eval of another class", other, *unknown, verb=("eval", "--data", "other.jsonl"))
    cannot = "metrics.json cannot be read"
    yield spoilt("damaged metrics", write("metrics.json", "{"), cannot, "restore", verb=("eval",))
    yield spoilt("no run", lambda run: shutil.rmtree(run), "no finished run", "give the folder")
    yield spoilt("an empty run", lambda run: (shutil.rmtree(run), run.mkdir()), "no finished run", "give the folder")


def _going_on() -> Iterator[Entry]:
    """`resume`, `merge` and `check` of what is no such run."""

    def unfinished(run: Path) -> None:
        (run / "metrics.json").unlink()

    def there(run: Path) -> None:
        (run / "merged").mkdir()
        (run / "merged" / "file").write_text("mine")

    resume, merge, check = ("resume",), ("merge",), ("check",)
    yield spoilt("resume/finished", lambda run: None, "is finished", "pefttool predict", verb=resume)
    yield spoilt("resume/no checkpoint", unfinished, "has no checkpoint", "start again with", verb=resume)
    yield spoilt("resume/no recipe", remove("recipe.yaml"), "is no run folder", "give the folder", verb=resume)
    yield spoilt("resume/no run", shutil.rmtree, "is no run folder", "give the folder", verb=resume)
    yield spoilt("merge/no run", shutil.rmtree, "no finished run", "give the folder", verb=merge)
    yield spoilt("merge/a full folder", there, "merged", "choose another --out", verb=merge)
    yield spoilt("merge/truncated weights", cut(WEIGHTS, -10), "cannot be read", "restore", verb=merge)
    yield spoilt("check/no run", shutil.rmtree, "no finished run", "give the folder", verb=check)
    yield spoilt("check/truncated weights", cut(WEIGHTS, -10), "cannot be read", "restore", verb=check)
    yield spoilt("check/another rank", change(CONFIG, r=3), "does not fit this base model", verb=check)
    yield spoilt("check/a strange field", change(CONFIG, acme=1), "'acme'", verb=check)


ENTRIES = [*_facts(), *_files(), *_verbs(), *_going_on()]
