"""Checkpoints that are damaged, unfinished, another run's, or made up: what loading one says."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
from bad_entry import Entry

from pefttool.data.batches import Position
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, Restorable, TrainingProgress

Spoil = Callable[[Path], object]
PARAMETERS, STATE, DOCUMENT = "parameters.safetensors", "state.safetensors", "state.json"
OLDER = "remove that folder to go on from an older one"


def training(width: int = 4) -> Restorable:
    """A small training after three steps."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + s))
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return Restorable(dict(model.named_parameters()), optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False))


@cache
def _good() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pefttool-checkpoint-"))
    return checkpoint.save(folder, TrainingProgress(3, Position(1, 2), Best(2, 0.5, 1)), training())


def good(folder: Path) -> Path:
    """A copy of a good checkpoint that may be spoilt."""
    return Path(shutil.copytree(_good(), folder / "step-3"))


def reseal(folder: Path) -> None:
    """Hash what is there anew, as somebody who makes checkpoints up would."""
    manifest = {
        p.name: _sha256(p) for p in folder.iterdir() if p.name not in (checkpoint.MANIFEST, checkpoint.COMPLETE)
    }
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    (folder / checkpoint.COMPLETE).write_text(_sha256(folder / checkpoint.MANIFEST))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@click.command("load-checkpoint")
@click.argument("folder", type=click.Path(path_type=Path))
def load(folder: Path) -> None:
    """What resuming does with a checkpoint."""
    checkpoint.load(folder, training())
    click.echo("loaded")


def spoilt(name: str, spoil: Spoil, *words: str, sealed: bool = False, real: bool = False) -> Entry:
    """A good checkpoint, after `spoil(folder)`; `sealed`: with hashes that are right all the same."""

    def make(folder: Path) -> list[str]:
        path = good(folder)
        spoil(path)
        if sealed:
            reseal(path)
        return ["load-checkpoint", str(path)]

    return Entry(f"checkpoint/{name}", make, ("checkpoint", "step-3", *words), real)


def write(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, keep: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def flip(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def change(alter: Callable[[Any], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / DOCUMENT).read_text())
        alter(document)
        (folder / DOCUMENT).write_text(json.dumps(document))

    return spoil


def manifest(document: Any) -> Spoil:
    """A manifest that is marked as complete."""

    def spoil(folder: Path) -> None:
        (folder / checkpoint.MANIFEST).write_text(document if isinstance(document, str) else json.dumps(document))
        (folder / checkpoint.COMPLETE).write_text(_sha256(folder / checkpoint.MANIFEST))

    return spoil


def _others(folder: Path) -> None:
    shutil.rmtree(folder)
    checkpoint.save(folder.parent, TrainingProgress(3, Position(1, 2), Best()), training(width=5))


def _entries() -> Iterator[Entry]:
    for name in (PARAMETERS, STATE, DOCUMENT):
        yield spoilt(f"a flipped bit of {name}", flip(name), name, "damaged", OLDER)
        yield spoilt(f"a truncated {name}", cut(name, -1), name, "damaged", OLDER)
        yield spoilt(f"an empty {name}", write(name, b""), name, "damaged", OLDER)
        yield spoilt(f"no {name}", lambda folder, name=name: (folder / name).unlink(), OLDER)  # type: ignore[misc]
    yield spoilt("a flipped bit of the manifest", flip(checkpoint.MANIFEST), "manifest.json", OLDER)
    yield spoilt("no manifest", lambda f: (f / checkpoint.MANIFEST).unlink(), OLDER)
    yield spoilt("no mark", lambda f: (f / checkpoint.COMPLETE).unlink(), "not complete", OLDER)
    yield spoilt("an empty mark", write(checkpoint.COMPLETE, b""), "COMPLETE", OLDER)
    yield spoilt("a mark of noise", write(checkpoint.COMPLETE, bytes(range(256))), OLDER)
    yield spoilt("nothing", lambda f: (shutil.rmtree(f), f.mkdir()), "not complete", OLDER)
    yield spoilt("a file", lambda f: (shutil.rmtree(f), f.write_text("")), "not complete", OLDER)
    yield spoilt("a manifest of nothing", manifest({}), "manifest.json", OLDER)
    yield spoilt("a manifest of a list", manifest([PARAMETERS]), OLDER)
    yield spoilt("a manifest that is no JSON", manifest("{"), OLDER)
    yield spoilt("a file above", manifest({"../../x": "0" * 64}), "'../../x'", "file of this folder")
    yield spoilt("a file at the root", manifest({"/etc/passwd": "0" * 64}), "'/etc/passwd'", "file of this folder")
    yield spoilt("the folder above", manifest({"..": "0" * 64}), "'..'", "file of this folder")
    pickled = b"\x80\x04cos\nsystem\n(S'echo'\ntR."
    yield spoilt("pickled parameters", write(PARAMETERS, pickled), PARAMETERS, OLDER, sealed=True)
    yield spoilt("pickled state", write(STATE, pickled), STATE, OLDER, sealed=True)
    yield spoilt("pickled progress", write(DOCUMENT, pickled), DOCUMENT, OLDER, sealed=True)
    yield spoilt("progress of a list", write(DOCUMENT, "[]"), DOCUMENT, OLDER, sealed=True)
    yield spoilt("progress nested too deeply", write(DOCUMENT, "[" * 100_000), DOCUMENT, OLDER, sealed=True)
    for key in ("progress", "state", "random", "identity"):
        yield spoilt(f"no {key}", change(lambda d, key=key: d.pop(key)), OLDER, sealed=True)  # type: ignore[misc]
    yield spoilt("progress in words", change(lambda d: d.update(progress="far")), OLDER, sealed=True)
    yield spoilt("a step in words", change(lambda d: d["progress"].update(acme=1)), OLDER, sealed=True)
    yield spoilt("state in words", change(lambda d: d.update(state="x")), OLDER, sealed=True)
    yield spoilt("a tensor of no name", change(lambda d: d.update(state={"$tensor": "x"})), OLDER, sealed=True)
    yield spoilt("chance in words", change(lambda d: d.update(random=["x"])), OLDER, sealed=True)
    yield spoilt("another run's", _others, "other parameters", "its own recipe")


ENTRIES = list(_entries())
