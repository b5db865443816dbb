"""Text files for formats: bytes and lines of UTF-8, unpacked where gzip packed them; what else a file is, is said."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem
from pefttool.toolkit.file_kinds import GZIP, identify, start_of

__all__ = ["HEAD", "head", "is_packed", "lines", "shown_suffix", "suffix"]

HEAD = 4096
#: A packed file may hold so many bytes, or so many times its own size if that is more: what unpacks to more is a bomb.
LEAST, RATIO = 1 << 26, 100
#: What Windows-1252 has beyond ASCII that people write: letters, quotation marks, dashes, signs of money and degrees.
WRITTEN = "€‚„…‘’“”•–—™£§©«®°±²³´µ·¹º»¼½¾¿¡×÷\xa0"
WINDOWS = "it is probably Windows-1252, where that is {!r}: save it as UTF-8 (Excel: `CSV UTF-8`), or convert it with"


def suffix(path: Path) -> str:
    """`.jsonl` of `rows.jsonl` and of `rows.JSONL.gz`, in lower case; nothing for what is no text."""
    if identify(path) is not None and not is_packed(path):
        return ""
    own = path.suffix.lower()
    return Path(path.stem).suffix.lower() if own == ".gz" else own


def shown_suffix(path: Path) -> str:
    """The suffix for people: `suffix .jsonl, packed by gzip`."""
    return f"suffix {suffix(path)}, packed by gzip" if is_packed(path) else f"suffix {path.suffix}"


def open_error(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def is_packed(path: Path) -> bool:
    """Whether gzip packed this file, whatever its name says."""
    return start_of(path).startswith(GZIP)


def head(path: Path) -> bytes:
    """The first bytes of its text, without a byte-order mark and leading space; of a damaged file what is left."""
    first = b""
    try:
        if is_packed(path):
            with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error), gzip.open(path) as unpacked:
                first = unpacked.read(HEAD)
        else:
            with path.open("rb") as stream:
                first = stream.read(HEAD)
    except OSError as error:
        raise open_error(path, error) from error
    return first.removeprefix(b"\xef\xbb\xbf").lstrip()


def lines(path: Path) -> Iterator[tuple[int, str, DataProblem | None]]:
    r"""(number, text, problem) of every line, ended by \n. Bytes that are not UTF-8 are a problem, and `\ufffd`.

    Raises DataError for a file that cannot be read, or is known to be no UTF-8 text (a workbook, an archive, UTF-16).
    """
    for number, line in enumerate(_raw_lines(path), 1):
        raw = line
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                way_out = f"iconv -f UTF-16 -t UTF-8 {path.name} > NEW"
                raise DataError(
                    f"{path} is UTF-16 text, expected UTF-8: save it as UTF-8, or convert it with {way_out}"
                )
            kind = None if is_packed(path) else identify(path)
            if kind is not None:
                raise DataError(f"{path} is no text: {kind}")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.decode("utf-8"), None
        except UnicodeDecodeError as error:
            yield number, raw.decode("utf-8", "replace"), DataProblem(str(path), number, not_utf8(raw, error, path))


def not_utf8(raw: bytes, error: UnicodeDecodeError, path: Path) -> str:
    """What is said of a line that is no UTF-8: the byte, what the encoding probably is, and what to do."""
    byte = raw[error.start : error.start + 1]
    found = f"found byte 0x{byte.hex()} at position {error.start + 1}, expected UTF-8 text"
    if _is_windows(raw):
        convert = f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > NEW"
        return f"{found}; {WINDOWS.format(byte.decode('cp1252'))} {convert}"
    return f"{found}; it is damaged, or in another encoding: save it as UTF-8"


def _is_windows(raw: bytes) -> bool:
    """Whether a line that is no UTF-8 reads as the Western Windows-1252: mostly ASCII, and nothing odd beside it."""
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return False
    beyond = [character for character in text if ord(character) > 127]
    there = sum(not character.isspace() for character in text)
    usual = all(c in WRITTEN or (0xBF < ord(c) < 0xFF or c in "ŠšŽžŒœŸªº") for c in beyond)
    multibyte = any(0xC2 <= a <= 0xF4 and 0x80 <= b <= 0xBF for a, b in itertools.pairwise(raw))
    controls = any(byte < 32 and byte not in b"\t\r\n\f" for byte in raw)
    return usual and not multibyte and not controls and len(beyond) <= max(2, there / 3)


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            if stream.peek(len(GZIP))[: len(GZIP)] != GZIP:
                yield from stream
                return
            most = max(LEAST, RATIO * path.stat().st_size)
            with gzip.open(stream) as unpacked:
                read = 0
                while line := unpacked.readline(most - read + 1):
                    read += len(line)
                    if read > most:
                        raise DataError(
                            f"{path} unpacks to more than {most:,} bytes: unpack it with gunzip, and give that"
                        )
                    yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise open_error(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be unpacked by gzip ({error}): is it complete? Get it again")
