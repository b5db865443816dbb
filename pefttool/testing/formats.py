"""The contract of a data format: rows in order, each with its place; and damage that is told, never a crash."""

from __future__ import annotations

import random
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool.api.data import DataFormat
from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool.testing.bench import ContractViolation, require


def check_format(
    data_format: DataFormat,
    path: Path,
    expected: Sequence[Mapping[str, Any]],
    lines: Sequence[int],
    others: Iterable[Path] = (),
) -> None:
    """`path` is a file of this format with the rows `expected`, on these `lines` (or of these numbers); `others` are
    files of other formats, for a general one: of other general formats. Raises ContractViolation."""
    what = f"format {data_format.name!r}"
    known = bool(data_format.sniff(path))
    require(known or data_format.by_name_only, what, f"does not recognise {path.name}")
    for other in others:
        reason = data_format.sniff(other)
        require(reason is None, what, f"claims {other.name}: {reason}")
    records = list(data_format.read(path, data_format.Options()))
    rows = [record for record in records if isinstance(record, Row)]
    require(len(rows) == len(records), what, f"finds problems in a good file: {records}")
    values = [dict(row.values) for row in rows]
    require(values == [dict(row) for row in expected], what, f"rows are not what was written: {values}")
    found = [row.place for row in rows]
    wanted = [f"{path}:{line}" for line in lines]
    require(found == wanted, what, f"places {found}, expected {wanted}")
    with tempfile.TemporaryDirectory() as folder:
        for i, damaged in enumerate(_damage(path.read_bytes())):
            _check_damaged(data_format, what, Path(folder) / f"damaged{i}{path.suffix}", damaged)


def _damage(content: bytes, count: int = 60) -> Iterable[bytes]:
    """The content with bytes overwritten and its end cut off; nothing; and noise. The same ones every time."""
    draws = random.Random(2)
    yield b""
    yield draws.randbytes(500)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(draws.randrange(4)):
            damaged[draws.randrange(len(damaged))] = draws.choice(string.printable.encode() + b"\xff\x00")
        yield bytes(damaged[: draws.randrange(len(damaged) + 1)])


def _check_damaged(data_format: DataFormat, what: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        data_format.sniff(path)
        records = list(data_format.read(path, data_format.Options()))
    except DataError as error:
        require(str(path) in str(error), what, f"an error does not name the file: {error}")
        return
    except Exception as error:
        raise ContractViolation(f"{what}: {error!r} for a damaged file, expected DataError: {content!r}") from error
    odd = [record for record in records if not isinstance(record, Row | DataProblem)]
    require(not odd, what, f"{odd[:1]} is neither Row nor DataProblem")
    nameless = [record for record in records if record.file != str(path) or record.line < 1]
    require(not nameless, what, f"{nameless[:1]} does not say where it stands")
