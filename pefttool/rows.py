"""From `--data` to rows: which files, in which format; every record with its place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pefttool.errors import DataError, suggest
from pefttool.interfaces import DataFormat, DataProblem, Row
from pefttool.registry import Registry

#: `SOURCE:REFERENCE`; a single letter before the colon is a drive.
SOURCE = re.compile(r"(?P<source>[A-Za-z0-9_\-]{2,}):(?P<reference>.+)")
TRAIN_STEMS = ("train", "training")
EVAL_STEMS = ("eval", "evaluation", "validation", "valid", "val", "dev", "test")
SAMPLE = 20


@dataclass(frozen=True)
class Files:
    """Data files; `eval` are those that a folder itself sets apart."""

    train: tuple[Path, ...]
    eval: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Rows in the files' order, records that are no rows, and `FILE: FORMAT (reason)` lines."""

    rows: tuple[Row, ...]
    problems: tuple[DataProblem, ...]
    formats: tuple[str, ...]


def resolve(reference: str, registry: Registry) -> Path:
    """The file or folder that `--data` names. Raises DataError if there is none."""
    path = Path(reference).expanduser()
    if path.exists():
        return path
    source = SOURCE.fullmatch(reference)
    if source is not None and source["source"] in registry.sources:
        return registry.sources[source["source"]].data(source["reference"])
    known = ", ".join(registry.sources) or "none"
    raise DataError(f"data {reference!r}: no such file or folder, and no SOURCE:REFERENCE of a source ({known})")


def find_files(path: Path) -> Files:
    """A file, or all files below a folder by name; `train.*` and `eval.*` (or `validation`, `test`) are the split."""
    if path.is_file():
        return Files((path,))
    visible = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
    if not visible:
        raise DataError(f"data {path}: the folder has no files: give one with JSONL, CSV, Parquet or text files")
    train = tuple(p for p in visible if _stem(p) in TRAIN_STEMS)
    held_out = tuple(p for p in visible if _stem(p) in EVAL_STEMS)
    others = tuple(p for p in visible if p not in held_out)
    if not others:
        return Files(held_out)  # a folder of nothing but test files is data like any other
    return Files(train or others, held_out)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _stem(path: Path) -> str:
    """`train` of `train.jsonl`, `train-00000-of-00002.parquet` and `train_1.csv`."""
    return re.split(r"[.\-_]", path.name.lower(), maxsplit=1)[0]


def choose_format(path: Path, registry: Registry, name: str | None = None) -> tuple[DataFormat, str]:
    """The format that the recipe names, or the only one that recognises the file; and why."""
    if name is not None:
        return registry.formats[name], "as asked"
    found = {n: reason for n in registry.formats if (reason := registry.formats[n].sniff(path))}
    if len(found) == 1:
        ((only, reason),) = found.items()
        return registry.formats[only], reason
    why = f"formats {', '.join(found)} all recognise it" if found else "no format recognises it"
    raise DataError(f"data {path}: {why}: say -o data.format=NAME {suggest('', registry.formats)}")


def records(path: Path, registry: Registry, name: str | None = None) -> Iterator[Row | DataProblem]:
    chosen, _ = choose_format(path, registry, name)
    return chosen.read(path, chosen.Options())


def read(files: Sequence[Path], registry: Registry, format_name: str | None = None) -> Reading:
    """Every record of these files."""
    rows: list[Row] = []
    problems: list[DataProblem] = []
    formats: list[str] = []
    for path in files:
        chosen, reason = choose_format(path, registry, format_name)
        formats.append(f"{path}: {chosen.name} ({reason})")
        for record in chosen.read(path, chosen.Options()):
            (rows if isinstance(record, Row) else problems).append(record)  # type: ignore[arg-type]
    return Reading(tuple(rows), tuple(problems), tuple(formats))


def peek(path: Path, registry: Registry, format_name: str | None = None) -> tuple[list[str], list[Row]]:
    """The columns and the first good rows of the training files; reads no more than it needs."""
    first = find_files(path).train[0]
    good = (record for record in records(first, registry, format_name) if isinstance(record, Row))
    sample = list(islice(good, SAMPLE))
    if not sample:
        raise DataError(f"data {first} has no usable row: is it empty, or in another format?")
    return list(dict.fromkeys(column for row in sample for column in row.values)), sample


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the files' contents, in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
