"""What a file is that no format of text reads, told from its first bytes, and how to make rows of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["start_of"]

GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
START = 512
AS_CSV = "save it as CSV (`CSV UTF-8`), and give that"
#: First bytes, what such a file is, and the next step; {} is its name.
KINDS = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls)", AS_CSV),
    (
        b"SQLite format 3\0",
        "an SQLite database",
        "export a table: sqlite3 -header -csv {} 'select * from TABLE' > t.csv",
    ),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it: zstd -d {}"),
    (b"\xfd7zXZ\0", "packed by xz", "unpack it: xz -dk {}"),
    (b"BZh91AY&SY", "packed by bzip2", "unpack it: bzip2 -dk {}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and give what is inside"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it, and give what is inside"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet: pandas.read_feather({!r}).to_parquet('rows.parquet')"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its rows as CSV or Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write its rows as JSONL, CSV or Parquet"),
    (b"%PDF-", "a PDF", "write its text into a .txt file"),
)
#: Documents that are ZIP archives: their suffixes, what they hold first, what they are, and the next step.
DOCUMENTS = (
    ((".xlsx", ".xlsm"), (b"xl/", b"[Content_Types].xml"), "an Excel workbook (.xlsx)", AS_CSV),
    ((".ods",), (b"opendocument.spreadsheet",), "an OpenDocument spreadsheet (.ods)", AS_CSV),
    (
        (".docx", ".odt"),
        (b"opendocument.text",),
        "a text document",
        "save it as plain text (.txt, UTF-8), and give that",
    ),
)


def identify(path: Path) -> str | None:
    """What this file is and what to do, for an error; None for what may be text."""
    start = start_of(path)
    for magic, what, remedy in KINDS:
        if start.startswith(magic):
            return f"it is {what}: {remedy.format(path.name)}"
    if start.startswith(ZIP):
        suffix = path.suffix.lower()
        documents = sorted(DOCUMENTS, key=lambda document: suffix not in document[0])  # what it is called, first
        for suffixes, marks, what, remedy in documents:
            if suffix in suffixes or any(mark in start for mark in marks):
                return f"it is {what}: {remedy}"
        return f"it is a ZIP archive: unpack it (unzip {path.name} -d FOLDER), and give the file or folder inside"
    if start.startswith(GZIP):
        if path.name.lower().endswith((".tar.gz", ".tgz")):
            return f"it is an archive: unpack it (tar -xzf {path.name}), and give the file or folder inside"
        return (
            f"it is packed by gzip: unpack it (gunzip -k {path.name}), or name it after what it holds (rows.jsonl.gz)"
        )
    return None


def start_of(path: Path) -> bytes:
    """The first bytes, as they are on disk; none where the file cannot be read, which its reader will say."""
    try:
        with path.open("rb") as stream:
            return stream.read(START)
    except OSError:
        return b""
