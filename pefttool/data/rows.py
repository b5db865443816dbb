"""From `--data` to rows: which files, in which format; every record with its place."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pefttool.api.data import DataFormat
from pefttool.api.errors import DataError, UsageError, suggest
from pefttool.api.values import DataProblem, Row
from pefttool.config.registry import Registry
from pefttool.config.validation import short
from pefttool.toolkit.file_kinds import identify

#: `SOURCE:REFERENCE`; a single letter before the colon is a drive.
SOURCE = re.compile(r"(?P<source>[A-Za-z0-9_\-]{2,}):(?P<reference>.+)")
TRAIN_STEMS = ("train", "training")
EVAL_STEMS = ("eval", "evaluation", "validation", "valid", "val", "dev", "test")
#: What lies beside data and is none: `README.md`, `LICENSE`, `CITATION.cff`.
DOCUMENT_STEMS = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing")
DOCUMENT_SUFFIXES = ("", ".md", ".txt", ".rst", ".cff")
#: Of names with an underscore before them, which are hidden, those that hold what is known of the files beside them
#: (`_annotations.coco.json`, `_classes.csv` in a Roboflow export).
TOLD_BESIDE = ("_annotations.", "_classes.")
SAMPLE = 20


@dataclass(frozen=True)
class Files:
    """Data files; `eval` are those that a folder itself sets apart, `ignored` those that are in neither part.

    `beside` are pictures and recordings beside tables: rows may name them, and they are no rows.
    """

    train: tuple[Path, ...]
    eval: tuple[Path, ...] = ()
    ignored: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Rows in the files' order, records that are no rows, and `FILE: FORMAT (reason)` lines."""

    rows: tuple[Row, ...]
    problems: tuple[DataProblem, ...]
    formats: tuple[str, ...]


def resolve(reference: str, registry: Registry) -> Path:
    """The file or folder that `--data` names. Raises DataError if there is none."""
    hint = f"sources: {', '.join(registry.sources) or 'none'}"
    way_out = "give the path of a file or folder, or SOURCE:REFERENCE"
    try:
        path = Path(reference).expanduser()
        if reference.strip() and path.exists():
            return path
        looked_for = path.absolute()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such user, a null character
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data {short(reference)}: no such file or folder ({reason}); {way_out} ({hint})") from error
    source = SOURCE.fullmatch(reference)
    if source is not None:
        try:
            found = registry.sources[source["source"]].data(source["reference"])
        except UsageError as error:
            hint = str(error)
        else:
            if not found.exists():
                raise DataError(f"data {reference!r}: its source says {found}, where there is no file or folder")
            return found
    raise DataError(f"data {reference!r}: no such file or folder ({looked_for}); {way_out} ({hint})")


def item_suffixes(registry: Registry) -> frozenset[str]:
    """Suffixes of files that are one row each, in lower case."""
    return frozenset(suffix for name in registry.formats for suffix in registry.formats[name].item_suffixes)


def files_of(path: Path, registry: Registry, format_name: str | None = None) -> Files:
    """`find_files` for the recipe's format: one whose files are one row each leaves tables out."""
    named = format_name is not None and format_name in registry.formats
    own = registry.formats[format_name or ""].item_suffixes if named else ()
    return find_files(path, own or item_suffixes(registry), only=bool(own))


def find_files(path: Path, items: Container[str] = (), only: bool = False) -> Files:
    """A file, or the files below a folder by name. Hidden files and those beside data (README, LICENSE) are no data.

    Files or folders called `train*` and `eval*` (or validation, valid, val, dev, test) are the split. Files with a
    suffix of `items` are one row each (pictures, recordings): beside tables they are what the tables refer to, and no
    rows, unless they `only` are asked for; their own names say nothing of the split, and the outermost folder says it
    first. Raises DataError.
    """
    if path.is_file():
        return Files((path,))
    if not path.is_dir():
        raise DataError(f"data {path}: neither a file nor a folder: give one with JSONL, CSV, Parquet or text")
    visible = [p for p in _below(path) if not any(map(_is_hidden, p.relative_to(path).parts))]
    if not visible:
        raise DataError(f"data {path}: the folder has no files: give one with JSONL, CSV, Parquet or text files")
    others = [p for p in visible if p.suffix.lower() not in items]
    tables = [p for p in others if not _is_document(p)]
    data = [p for p in visible if p.suffix.lower() in items]
    beside: list[Path] = []
    if not data or (tables and not only):
        data, beside, visible = tables or others, data, others
    parts = {
        p: _part(p.relative_to(path)) if p.suffix.lower() not in items else _part_of_item(p.relative_to(path))
        for p in data
    }
    train, held_out, rest = (tuple(p for p in data if parts[p] == part) for part in ("train", "eval", None))
    if not train:
        # A folder of nothing but test files is data like any other.
        train, held_out = (rest, held_out) if rest else (held_out, ())
    chosen = {*train, *held_out}
    return Files(train, held_out, tuple(p for p in visible if p not in chosen), tuple(beside))


def loose(folder: Path, files: Sequence[Path], items: Container[str]) -> tuple[Path, ...]:
    """Those of these files that are one row each and lie beside folders of others: in none that could be their class.

    They are directly in the folder that was named, or in a part of its split.
    """
    found = [path for path in files if path.suffix.lower() in items]
    above = {parent for path in found for parent in path.parent.parents}
    return tuple(
        p for p in found if p.parent in above and all(map(_part, map(Path, p.relative_to(folder).parent.parts)))
    )


def _below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"data {error.filename} cannot be read: {error.strerror}") from error

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    return sorted(path for path in found if path.is_file())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) and not name.startswith(TOLD_BESIDE)


def _is_document(path: Path) -> bool:
    return _stem(path.name) in DOCUMENT_STEMS and path.suffix.lower() in DOCUMENT_SUFFIXES


def _part(path: Path) -> str | None:
    """The part of the split that the file's name says, or the name of the folder nearest to it."""
    for stem in map(_stem, reversed(path.parts)):
        if stem in TRAIN_STEMS:
            return "train"
        if stem in EVAL_STEMS:
            return "eval"
    return None


def _part_of_item(path: Path) -> str | None:
    """The part that the outermost folder with such a name says: inside it a class may be called `train`, too."""
    return next((part for folder in path.parent.parts if (part := _part(Path(folder)))), None)


def _stem(name: str) -> str:
    """`train` of `train.jsonl`, `train-00000-of-00002.parquet` and `train_1.csv`."""
    return re.split(r"[.\-_]", name.lower(), maxsplit=1)[0]


def choose_format(path: Path, registry: Registry, name: str | None = None) -> tuple[DataFormat, str]:
    """The format that the recipe names, or the only one that recognises the file; and why."""
    if name is not None:
        try:
            return registry.formats[name], "as asked"
        except UsageError as error:
            raise UsageError(f"data.format: {error}") from error
    known = registry.recognised
    key = _state(path)
    if key in known:
        chosen, reason = known[key]
        return registry.formats[chosen], str(reason)
    found = {n: reason for n in registry.formats if (reason := registry.formats[n].sniff(path))}
    found = {n: reason for n, reason in found.items() if not registry.formats[n].general} or found
    if len(found) == 1:
        ((only, reason),) = found.items()
        known[key] = only, reason
        return registry.formats[only], reason
    kind = identify(path) if not found else None
    if kind is not None:
        raise DataError(f"data {path}: no format recognises it: {kind}")
    why = f"formats {', '.join(found)} all recognise it" if found else "no format recognises it"
    raise DataError(f"data {path}: {why}: say -o data.format=NAME {suggest('', registry.formats)}")


def _state(path: Path) -> tuple[Any, ...]:
    """The file as it is: one that is written anew has another state."""
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path, found.st_mtime_ns, found.st_size


def in_turn(
    files: Sequence[Path], registry: Registry, name: str | None = None
) -> Iterator[tuple[Path, DataFormat, str]]:
    """(file, its format, why) of those that have rows: not of one that an earlier one is read together with."""
    beside: set[Path] = set()
    for path in files:
        if path not in beside:
            chosen, reason = choose_format(path, registry, name)
            beside.update(chosen.companions(path))
            yield path, chosen, reason


def with_companions(files: Sequence[Path], registry: Registry, name: str | None = None) -> tuple[Path, ...]:
    """These files, and those that are read together with them."""
    found = (p for path, chosen, _ in in_turn(files, registry, name) for p in (path, *chosen.companions(path)))
    return tuple(dict.fromkeys(found))


def records(
    files: Sequence[Path], registry: Registry, name: str | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[Row | DataProblem]:
    """The records of these files, in order; no file is opened before it has to be."""
    for path, chosen, _ in in_turn(files, registry, name):
        yield from chosen.read(path, chosen.Options.model_validate(dict(options or {})))


def read(
    files: Sequence[Path], registry: Registry, format_name: str | None = None, options: Mapping[str, Any] | None = None
) -> Reading:
    """Every record of these files. `options` are those of the format with this name."""
    rows: list[Row] = []
    problems: list[DataProblem] = []
    formats: dict[str, list[Path]] = {}
    for path, chosen, reason in in_turn(files, registry, format_name):
        formats.setdefault(f"{chosen.name} ({reason})", []).append(path)
        for record in chosen.read(path, chosen.Options.model_validate(dict(options or {}))):
            if isinstance(record, Row):
                rows.append(record)
            else:
                problems.append(record)
    lines = (f"{p[0]}{f' and {len(p) - 1} more' if len(p) > 1 else ''}: {how}" for how, p in formats.items())
    return Reading(tuple(rows), tuple(problems), tuple(lines))


def peek(
    path: Path, registry: Registry, format_name: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[list[str], list[Row]]:
    """The columns and the first good rows of the training files; reads no more than it needs."""
    problems: list[DataProblem] = []

    def good() -> Iterator[Row]:
        files = files_of(path, registry, format_name).train
        for record in records(files, registry, format_name, options):
            if isinstance(record, Row):
                yield record
            elif not problems:
                problems.append(record)

    sample = list(islice(good(), SAMPLE))
    if not sample:
        why = (
            f"mend its records; the first: {problems[0]}" if problems else "is it empty? Give a file with at least one"
        )
        raise DataError(f"data {path} has no usable row: {why}")
    return list(dict.fromkeys(column for row in sample for column in row.values)), sample


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256, in hexadecimal, over the files' contents, in order. Raises DataError if one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"data {path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
