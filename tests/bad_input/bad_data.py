"""Data that is wrong: every registered format, and rows that are no rows of their task."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from bad_entry import Entry

from pefttool.cli.common import current_registry

#: Of a row that cannot be used, where rows can be left out.
MEND = ("cannot be used", "mend them, or leave them out with --skip-bad-rows")
#: Where one complaint is every row's.
NONE = ("and so all", "no row can be used: mend them")
Write = Callable[[Path], object]


@click.command("load-data")
@click.argument("path")
@click.option("--task")
@click.option("--format", "data_format")
@click.option("--eval-data")
@click.option("-o", "overrides", multiple=True)
def load_data(
    path: str, task: str | None, data_format: str | None, eval_data: str | None, overrides: tuple[str, ...]
) -> None:
    """What a run does with its data: recognise the task, read, check, split."""
    from pefttool.config import recipe
    from pefttool.data import corpus, recognition

    registry = current_registry()
    flags = {"data.train": path, "data.eval": eval_data, "data.format": data_format, "task.name": task}
    document = {"model": "none", "adapter": {"name": next(iter(registry.adapters), None)}}
    given = recipe.resolve(recipe.combine(document, flags, overrides), registry)
    found = corpus.load(recognition.recognise_task(given, registry)[0], registry)
    click.echo(f"{len(found.train)} rows")


def of(task: str | None, suffix: str, *more: str, area: str | None = None) -> Callable[..., Entry]:
    """Makes entries of one kind of file: `entry(name, content, *words)`."""

    def entry(
        name: str,
        content: str | bytes | Write,
        *words: str,
        more: tuple[str, ...] = more,
        suffix: str = suffix,
        real: bool = False,
    ) -> Entry:
        def make(folder: Path) -> list[str]:
            path = folder / f"bad{suffix}"
            if callable(content):
                content(path)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
            asked = [] if task is None else ["--task", task]
            verb = ["data", "check"] if real else ["load-data"]
            return [*verb, str(path), *asked, *more]

        return Entry(f"{area or suffix.removeprefix('.')}/{name}", make, words, real)

    return entry


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


ONE, TWO = {"text": "one", "label": "a"}, {"text": "two", "label": "b"}


def _jsonl() -> Iterator[Entry]:
    bad = of("text-classification", ".jsonl")

    def line(name: str, text: Any, *words: str) -> Entry:
        """Between good rows, so that it stands on line 2."""
        return bad(name, lines(ONE, text, TWO), "bad.jsonl:2", "expected", *words, *MEND)

    yield bad("empty", "", "bad.jsonl", "no usable row", "Give a file", real=True)
    yield bad("blank lines", "\n\n \n", "bad.jsonl", "no usable row")
    yield bad("a byte-order mark alone", b"\xef\xbb\xbf", "bad.jsonl", "no usable row")
    yield bad("UTF-16", lines(ONE, TWO).encode("utf-16"), "bad.jsonl", "UTF-16", "save it as UTF-8", real=True)
    yield bad("one row", lines(ONE), "no rows are left", "give more rows")
    yield bad("no good row", lines([1], [2]), "bad.jsonl:1", "expected a JSON object")
    yield bad("truncated", lines(ONE, TWO) + '{"text": "thr', "bad.jsonl:3", "expected a JSON object", *MEND)
    yield bad("a zip archive", b"PK\x03\x04" + bytes(200), "bad.jsonl")
    yield bad("a pickle", b"\x80\x04\x95" + bytes(50) + b"\n", "bad.jsonl", "0x80")
    yield bad("zeros", bytes(1000), "bad.jsonl:1", "expected a JSON object")
    yield bad("a very long line", "x" * 3_000_000, "bad.jsonl:1", "expected a JSON object")
    yield bad("HTML", "<!DOCTYPE html>\n<html>404</html>\n", "bad.jsonl:1", "expected a JSON object")
    yield bad("bytes that are no UTF-8", lines(ONE).encode() + b'{"text": "\xe9"}\n', "bad.jsonl:2", "0xe9", *MEND)
    yield line("invalid JSON", '{"text": "two" "label": "b"}', "JSON")
    yield line("single quotes", "{'text': 'two', 'label': 'b'}", "JSON object")
    yield line("a comma at the end", '{"text": "two", "label": "b",}', "JSON object")
    yield line("a comment", '{"text": "two"} // label b', "JSON object")
    yield line("Python's truth", '{"text": "two", "label": True}', "JSON object")
    yield line("two objects", '{"text": "a", "label": "a"}{"text": "b", "label": "b"}', "Extra data")
    yield line("a list", [1, 2], "found '[1, 2]'")
    yield line("a number", 5, "found '5'")
    yield line("a text", '"two"', "JSON object")
    yield line("null", "null", "found 'null'")
    yield line("a key twice", '{"text": "a", "text": "b", "label": "a"}', "key 'text' occurs twice")
    yield line("no number", '{"text": "a", "label": NaN}', "NaN is not JSON")
    yield line("infinity", '{"text": "a", "label": -Infinity}', "-Infinity is not JSON")
    yield line("beyond float64", '{"text": "a", "label": 1e999}', "beyond float64")
    yield line("thousands of digits", '{"text": "a", "label": ' + "9" * 5000 + "}", "5000 digits")
    yield line("half a surrogate", '{"text": "\\ud800", "label": "a"}', "surrogate")
    yield line("nested too deeply", "[" * 100_000, "JSON object")
    yield line("a control character", '{"text": "a\x01b", "label": "a"}', "control character")
    yield line("no label", {"text": "two"}, "found columns 'text'", "label_column=COLUMN")
    yield line("no text", {"label": "b"}, "found columns 'label'", "text_column=COLUMN")
    yield line("other columns", {"body": "two", "mark": "b"}, "found columns 'body', 'mark'")
    yield line("no columns", {}, "found columns none")
    yield line("a text that is a number", {"text": 5, "label": "b"}, "'text'", "found 5")
    yield line("a text that is null", {"text": None, "label": "b"}, "'text'", "found None")
    yield line("a text that is a list", {"text": ["two"], "label": "b"}, "'text'", "found ['two']")
    yield line("an empty text", {"text": "", "label": "b"}, "'text'")
    yield line("a label that is an object", {"text": "two", "label": {"a": 1}}, "'label'", "found {'a': 1}")
    yield line("a label that is null", {"text": "two", "label": None}, "'label'", "found None")
    yield line("an empty label", {"text": "two", "label": ""}, "'label'")
    column = ("-o", "task.text_column=body")
    yield bad("a column that is not there", lines(ONE, TWO), "'body'", "found columns", more=column)
    yield bad("a column of no option", lines(ONE, TWO), "task.txt: unknown key", more=("-o", "task.txt=b"))
    kind = ("-o", "task.problem_type=several")
    yield bad("an option of no kind", lines(ONE, TWO), "task.problem_type", more=kind)


def _folders() -> Iterator[Entry]:
    def place(name: str, write: Write, *words: str, real: bool = False) -> Entry:
        return of(None, "", area="place")(name, write, *words, real=real)

    def reference(name: str, given: str, *words: str, real: bool = False) -> Entry:
        verb = ["data", "check"] if real else ["load-data"]
        return Entry(f"place/{name}", lambda folder: [*verb, given, "--task", "chat"], words, real)

    def hidden(path: Path) -> None:
        path.mkdir()
        (path / ".train.jsonl").write_text(lines(ONE, TWO))

    def unknown(path: Path) -> None:
        path.mkdir()
        (path / "rows.xlsx").write_bytes(b"PK\x03\x04")

    def closed(path: Path) -> None:
        path.mkdir()
        (path / "sub").symlink_to(path / "sub")
        (path / "dangling.jsonl").symlink_to(path / "nothing.jsonl")

    yield place("an empty folder", lambda p: p.mkdir(), "no files", "give one with", real=True)
    yield place("a folder of hidden files", hidden, "no files", "give one with")
    yield place("a folder of links to nothing", closed, "no files", "give one with")
    yield place("a folder of what nobody reads", unknown, "rows.xlsx", "an Excel workbook", "save it as CSV")
    yield place("a pipe", os.mkfifo, "neither a file nor a folder", "give one")
    yield place("a link to itself", lambda p: p.symlink_to(p), "bad", "no such file or folder")
    yield place("a pickle", lambda p: p.write_bytes(b"\x80\x04K\x01."), "no format recognises it", "data.format=NAME")
    yield reference("missing", "no-such-file.jsonl", "'no-such-file.jsonl'", "no such file or folder", real=True)
    yield reference("a device", "/dev/null", "/dev/null", "neither a file nor a folder", "give one")
    yield reference("no name", "", "data.train: none given", "--data")
    yield reference("a name too long", "x" * 5000, "no such file or folder")
    yield reference("somebody's home", "~nobody-of-that-name/x", "no such file or folder")
    yield reference("an unknown source", "exmple:movie-snippets", "'exmple", "did you mean 'example'", real=True)
    yield reference("an unknown example", "example:movie-snipets", "'movie-snipets'", "did you mean 'movie-snippets'")
    yield reference("a model for data", "example:all-minilm-l6-v2", "is a model", "allowed:")
    yield reference("a page", "https://example.org/rows.jsonl", "no such file or folder", "allowed: example")

    def eval_of(name: str, content: str, *words: str) -> Entry:
        def make(folder: Path) -> list[str]:
            (folder / "rows.jsonl").write_text(lines(ONE, TWO))
            (folder / "held_out.jsonl").write_text(content)
            held_out = ["--eval-data", str(folder / "held_out.jsonl")]
            return ["load-data", str(folder / "rows.jsonl"), "--task", "text-classification", *held_out]

        return Entry(f"held out/{name}", make, words)

    yield eval_of("empty", "", "data.eval: no rows are left", "give")
    yield eval_of("a class of its own", lines({"text": "x", "label": "c"}), "held_out.jsonl:1", "'c'", "add training")
    yield eval_of("a bad row", lines(ONE, [1]), "held_out.jsonl:2", "expected a JSON object", *MEND)
    yield eval_of("broken", '{"text"', "held_out.jsonl:1", "expected a JSON object")


def _csv() -> Iterator[Entry]:
    bad = of("text-classification", ".csv")
    head = "text,label\none,a\n"
    yield bad("empty", "", "bad.csv", "no usable row")
    yield bad("a header alone", "text,label\n", "bad.csv", "no usable row")
    yield bad("a value too many", head + "two,b,c\n", "bad.csv:3", "found 3 values, expected 2 (text, label)", *MEND)
    yield bad("a value too few", head + "two\n", "bad.csv:3", "found 1 values, expected 2", *MEND, real=False)
    yield bad("an open quote", head + '"two,b\nthree,a\n', "bad.csv:3", "never closed", "close it")
    yield bad("a quote inside", head + '"two" or so,b\n', "bad.csv:3", "expected separated values", *MEND)
    yield bad("a column twice", "text,text\na,b\n", "bad.csv:1", "'text' occurs twice", "give each column a name")
    yield bad("no name of a column", ",\none,a\ntwo,b\n", "bad.csv:1", "found no name of a column", "write one")
    yield bad("no header", "one,a\ntwo,b\nthree,a\n", "bad.csv:2", "found columns 'one', 'a'", "text_column=COLUMN")
    yield bad("another delimiter", "text:label\none:a\ntwo:b\n", "bad.csv:2", "found columns 'text:label'")
    yield bad("Latin-1", head.encode() + b"caf\xe9,b\n", "bad.csv:3", "0xe9", *MEND)
    yield bad("a header in Latin-1", b"text,caf\xe9\none,a\n", "bad.csv:1", "0xe9", "UTF-8")
    yield bad("UTF-16", head.encode("utf-16"), "bad.csv", "UTF-16", "save it as UTF-8")
    yield bad("an empty text", head + ",b\n", "bad.csv:3", "'text'", *MEND)
    yield bad("a spreadsheet", b"PK\x03\x04\x14\x00" + bytes(range(256)), "bad.csv")
    yield bad("zeros", bytes(300), "bad.csv")
    yield bad("one very long line", "a" * 2_000_000, "bad.csv", "no usable row")
    yield bad(
        "a delimiter of two",
        head,
        "delimiter",
        "'::'",
        more=("--format", "csv", "-o", "data.format_options.delimiter='::'"),
    )
    yield bad("carriage returns alone", "text,label\rone,a\rtwo,b\r", "bad.csv")
    yield of("text-classification", ".tsv")("commas", head, "bad.tsv", "'text,label'")


def _json() -> Iterator[Entry]:
    bad = of("text-classification", ".json")
    good = json.dumps([ONE, TWO])
    yield bad("empty", "", "bad.json", "no usable row")
    yield bad("an empty list", "[]", "bad.json", "no usable row")
    yield bad("truncated", good[:-10], "bad.json:1", "expected a list of JSON objects")
    yield bad("no end", good[:-1], "bad.json:1", "expected a list of JSON objects")
    yield bad("more behind the end", good + "x", "bad.json:1", "Extra data", "expected a list of JSON objects")
    yield bad("a comma at the end", good[:-1] + ",]", "bad.json:1", "expected a list of JSON objects")
    yield bad("broken on line 3", json.dumps([ONE, TWO], indent=0).replace('"label"', "label"), "bad.json:4")
    yield bad("a list of numbers", "[1, 2, 3]", "bad.json:1", "expected a JSON object")
    yield bad("columns", json.dumps({"text": ["a", "b"], "label": ["x", "y"]}), "'text'", "found ['a', 'b']")
    yield bad("rows by name", json.dumps({"rows": [ONE, TWO]}), "found columns 'rows'")
    yield bad("no number", '[{"text": NaN, "label": "a"}]', "bad.json:1", "NaN is not JSON")
    yield bad("nested too deeply", "[" * 100_000, "bad.json", "expected a list of JSON objects")
    yield bad("UTF-16", good.encode("utf-16"), "bad.json", "UTF-16", "save it as UTF-8")
    yield bad("Latin-1", b'[{"text": "caf\xe9", "label": "a"}]', "bad.json:1", "0xe9", "UTF-8")
    yield bad("YAML", "- text: one\n  label: a\n", "bad.json:1")
    yield bad("a text", '"one"', "bad.json:1", "expected a JSON object")
    yield bad("a thousand digits", '[{"text": "a", "label": ' + "1" * 5000 + "}]", "bad.json:1", "5000 digits")


def _parquet_file(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ONE, TWO]), path)


def _spoilt(write: Write, spoil: Callable[[bytearray], object]) -> Write:
    def spoilt(path: Path) -> None:
        write(path)
        content = bytearray(path.read_bytes())
        spoil(content)
        path.write_bytes(content)

    return spoilt


def _parquet() -> Iterator[Entry]:
    def columns(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)

    bad = of("text-classification", ".parquet")
    complete = "is the file complete?"
    yield bad("empty", b"", "bad.parquet", "cannot be read as parquet", complete)
    yield bad("text", "text,label\none,a\n", "bad.parquet", "cannot be read as parquet", complete)
    yield bad("its name alone", b"PAR1", "bad.parquet", "cannot be read as parquet", complete)
    cut = _spoilt(_parquet_file, lambda content: content.__delitem__(slice(len(content) // 2, None)))
    yield bad("truncated", cut, "bad.parquet", "cannot be read as parquet", complete)
    yield bad("no footer", _spoilt(_parquet_file, lambda c: c.__delitem__(slice(-8, None))), "bad.parquet", complete)
    yield bad("a wrong length", _spoilt(_parquet_file, lambda c: c.__setitem__(-6, 255)), "bad.parquet", complete)
    yield bad("other columns", columns, "bad.parquet:1", "found columns 'a'", *MEND)


def _text() -> Iterator[Entry]:
    bad = of("causal-lm", ".txt")
    yield bad("empty", "", "bad.txt", "no usable row")
    yield bad("blank lines", "\n \n\n", "bad.txt", "no usable row")
    yield bad("UTF-16", "one\n\ntwo\n".encode("utf-16"), "bad.txt", "UTF-16", "save it as UTF-8")
    yield bad("Latin-1", b"one\n\ncaf\xe9\n", "bad.txt:3", "0xe9", *MEND)
    yield bad("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(128, 256)), "bad.txt", "0x89")
    yield bad("one paragraph", "one", "no rows are left", "give more rows")
    yield bad(
        "rows of what",
        "one\n\ntwo\n",
        "split",
        "'word'",
        more=("--format", "text", "-o", "data.format_options.split=word"),
    )
    of_no_task = of(None, ".jsonl", area="task")
    yield of_no_task("none", lines({"a": 1}, {"a": 2}), "bad.jsonl", "no task recognises it", "say --task NAME")
    both = {"text": "a", "label": "b", "prompt": "c", "chosen": "d", "rejected": "e"}
    yield of_no_task("two", lines(both, both), "more than one task", "text-classification", "say --task NAME")


ENTRIES = [*_jsonl(), *_folders(), *_csv(), *_json(), *_parquet(), *_text()]
