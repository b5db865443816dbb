"""From `--data` to files and records: what is found, what is chosen, and what is said where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_registry import PLUGIN, make_registry

from pefttool import DataFormat, Source
from pefttool.api.errors import DataError, PluginError, UsageError
from pefttool.api.values import DataProblem, Row
from pefttool.config.registry import Kind, Registered, Registry
from pefttool.data import rows


class Words(DataFormat):
    """A row for each line; `!` is no row. Remembers how many records it was asked for."""

    name = "words"
    suffix = ".words"

    def __init__(self) -> None:
        self.given = 0

    def sniff(self, path: Path) -> str | None:
        return f"suffix {self.suffix}" if path.suffix == self.suffix else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        for number, word in enumerate(path.read_text().splitlines(), 1):
            self.given += 1
            if word == "!":
                yield DataProblem(str(path), number, "found '!', expected a word")
            else:
                yield Row({"word": word, f"column{number % 2}": number}, str(path), number)


class Twin(Words):
    """Recognises what `Words` recognises."""

    name = "twin"


class Store(Source):
    name = "store"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, reference: str) -> Path:
        raise AssertionError("no model was asked for")

    def data(self, reference: str) -> Path:
        return self.folder / reference


def kind(name: str, *objects: Any, clashes: dict[str, str] | None = None) -> Kind[Any]:
    return Kind(name, {o.name: Registered(o, PLUGIN) for o in objects}, clashes or {})


@pytest.fixture
def fake(tmp_path: Path) -> Registry:
    sources = kind("source", Store(tmp_path), clashes={"twice": "source 'twice' is registered by a and b"})
    return replace(make_registry(), formats=kind("format", Words()), sources=sources)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a\nb\n")
    return folder


def names(folder: Path, paths: tuple[Path, ...]) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_a_path_goes_before_a_source(fake: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.words", "store:a.words")
    assert rows.resolve("store:a.words", fake) == tmp_path / "a.words"
    monkeypatch.chdir(tmp_path)
    assert rows.resolve("store:a.words", fake) == Path("store:a.words")


@pytest.mark.parametrize("reference", ["nowhere.jsonl", "C:\\data.csv", "C:/data.csv", "a\0b", "x" * 5000, "", " "])
def test_data_that_is_nowhere_is_named(fake: Registry, reference: str) -> None:
    with pytest.raises(DataError, match="no such file or folder") as caught:
        rows.resolve(reference, fake)
    assert repr(reference)[:20].rstrip("'") in str(caught.value) and "give the path" in str(caught.value)
    assert "unknown source" not in str(caught.value), "a drive letter was taken for a source"


def test_a_home_that_nobody_has_is_an_error_of_ours(fake: Registry) -> None:
    with pytest.raises(DataError, match=r"'~nobody-of-this-name/x'.*no such file or folder"):
        rows.resolve("~nobody-of-this-name/x", fake)


def test_what_was_looked_for_and_what_there_is_are_said(
    fake: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        rows.resolve("stor:a", fake)
    assert str(tmp_path / "stor:a") in str(caught.value) and "did you mean 'store'" in str(caught.value)
    with pytest.raises(DataError, match=r"'store:gone': its source says .*gone, where there is no file"):
        rows.resolve("store:gone", fake)
    with pytest.raises(PluginError, match="registered by a and b"):
        rows.resolve("twice:a", fake)


def test_a_folder_is_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    fill(tmp_path, "b.words", "a/2.words", "a/10.words", ".git/x.words", "a/.x.words", "_SUCCESS")
    found = rows.find_files(tmp_path)
    assert names(tmp_path, found.train) == ["a/10.words", "a/2.words", "b.words"]
    assert found.eval == found.ignored == ()


def test_what_is_known_of_the_files_beside_it_is_data_though_an_underscore_is_before_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "train/_annotations.coco.x", "train/1.png", "valid/_annotations.coco.x", "valid/2.png", "train/_a.x")
    fill(tmp_path, "_cache/_annotations.x")
    found = rows.find_files(tmp_path, {".png"})
    assert names(tmp_path, found.train) == ["train/_annotations.coco.x"]
    assert names(tmp_path, found.eval) == ["valid/_annotations.coco.x"] and found.ignored == ()


@pytest.mark.parametrize(
    ("files", "loose"),
    [
        (["cat/1.png", "dog/2.png", "3.png"], ["3.png"]),
        (["train/cat/1.png", "train/3.png", "test/dog/2.png"], ["train/3.png"]),
        (["1.png", "2.png"], []),
        (["cat/1.png", "cat/tabby/2.png"], []),
        (["train/1.png", "car/2.png"], []),  # `train` may well be a class
        (["cat/1.png", "rows.csv"], []),
    ],
)
def test_items_beside_the_folders_of_classes_are_loose(tmp_path: Path, files: list[str], loose: list[str]) -> None:
    every = [tmp_path / name for name in files]
    assert names(tmp_path, rows.loose(tmp_path, every, {".png"})) == loose
    assert rows.loose(every[0], every[:1], {".png"}) == ()


@pytest.mark.parametrize(
    ("files", "train", "held_out", "ignored"),
    [
        (["train-1.x", "train-2.x", "valid.x"], ["train-1.x", "train-2.x"], ["valid.x"], []),
        (["Train.x", "DEV.x", "extra.x"], ["Train.x"], ["DEV.x"], ["extra.x"]),
        (["test/a.x", "train/a.x", "train/b.x"], ["train/a.x", "train/b.x"], ["test/a.x"], []),
        (["test/train.x", "test/eval.x"], ["test/train.x"], ["test/eval.x"], []),  # the nearest name counts
        (["a.x", "test_1.x"], ["a.x"], ["test_1.x"], []),
        (["test.x"], ["test.x"], [], []),
        (["trainer.x", "testing.x", "value.x"], ["testing.x", "trainer.x", "value.x"], [], []),
        (["README.md", "LICENSE", "a.x"], ["a.x"], [], ["LICENSE", "README.md"]),
        (["README.md"], ["README.md"], [], []),
        (["notice.x"], ["notice.x"], [], []),
    ],
)
def test_names_are_the_split(
    tmp_path: Path, files: list[str], train: list[str], held_out: list[str], ignored: list[str]
) -> None:
    found = rows.find_files(fill(tmp_path, *files))
    assert names(tmp_path, found.train) == train
    assert names(tmp_path, found.eval) == held_out
    assert names(tmp_path, found.ignored) == ignored


def test_what_is_no_file_and_no_folder_of_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no files"):
        rows.find_files(tmp_path)
    with pytest.raises(DataError, match="/dev/null: neither a file nor a folder"):
        rows.find_files(Path("/dev/null"))


def test_one_format_that_recognises_the_file_is_chosen(fake: Registry, tmp_path: Path) -> None:
    chosen, reason = rows.choose_format(fill(tmp_path, "a.words") / "a.words", fake)
    assert (chosen.name, reason) == ("words", "suffix .words")
    chosen, reason = rows.choose_format(tmp_path / "a.other", fake, "words")
    assert (chosen.name, reason) == ("words", "as asked")


def test_none_or_two_formats_are_an_error_that_names_them(fake: Registry, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"a\.other: no format recognises it: say -o data\.format=NAME \(allowed: words"
    ):
        rows.choose_format(tmp_path / "a.other", fake)
    two = replace(fake, formats=kind("format", Words(), Twin()))
    with pytest.raises(DataError, match=r"a\.words: formats twin, words all recognise it: say -o data\.format=NAME"):
        rows.choose_format(tmp_path / "a.words", two)
    assert rows.choose_format(tmp_path / "a.words", two, "twin")[0].name == "twin"
    with pytest.raises(UsageError, match=r"data\.format: unknown format 'wrds': did you mean 'words'"):
        rows.choose_format(tmp_path / "a.words", fake, "wrds")


def test_reading_keeps_the_order_and_every_problem(fake: Registry, tmp_path: Path) -> None:
    fill(tmp_path, "a.words", "b.words")
    (tmp_path / "a.words").write_text("one\n!\ntwo\n")
    reading = rows.read(rows.find_files(tmp_path).train, fake)
    assert [(row.values["word"], row.line) for row in reading.rows] == [("one", 1), ("two", 3), ("a", 1), ("b", 2)]
    assert [str(problem) for problem in reading.problems] == [f"{tmp_path / 'a.words'}:2: found '!', expected a word"]
    assert reading.formats == (f"{tmp_path / 'a.words'} and 1 more: words (suffix .words)",)


def test_a_look_reads_no_more_than_it_needs(fake: Registry, tmp_path: Path) -> None:
    path = tmp_path / "a.words"
    path.write_text("!\n" + "w\n" * 1000)
    columns, sample = rows.peek(path, fake)
    assert columns == ["word", "column0", "column1"]
    assert [row.line for row in sample] == list(range(2, rows.SAMPLE + 2))
    words = fake.formats["words"]
    assert isinstance(words, Words) and words.given == rows.SAMPLE + 1


def test_a_look_goes_on_to_the_next_file(fake: Registry, tmp_path: Path) -> None:
    fill(tmp_path, "a.words", "b.words", "c.words")
    (tmp_path / "a.words").write_text("")
    (tmp_path / "b.words").write_text("!\n")
    assert [row.place for row in rows.peek(tmp_path, fake)[1]] == [f"{tmp_path / 'c.words'}:{n}" for n in (1, 2)]


def test_a_look_that_finds_nothing_says_why(fake: Registry, tmp_path: Path) -> None:
    path = tmp_path / "a.words"
    path.write_text("!\n!\n")
    with pytest.raises(DataError, match=r"no usable row: mend its records; the first: .*a\.words:1: found '!'"):
        rows.peek(path, fake)
    path.write_text("")
    with pytest.raises(DataError, match="no usable row: is it empty"):
        rows.peek(path, fake)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"?", r"no format recognises it: say -o data\.format=NAME .*csv.*jsonl"),
        ("a.jsonl", b"", "has no usable row"),
        ("a.csv", b"text,label\n", "has no usable row"),
        ("a.parquet", b"PAR1 but no more", "cannot be read as parquet"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "cannot be read as parquet"),
    ],
)
def test_files_that_are_no_data(registry: Registry, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows.peek(tmp_path / name, registry)


def test_the_fingerprint_is_of_the_contents_in_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text(json.dumps({"x": 1}))
    b.write_text(json.dumps({"x": 2}))
    before = rows.fingerprint([a, b])
    assert len(before) == 64 and before == rows.fingerprint([a, b]) != rows.fingerprint([b, a])
    moved = a.rename(tmp_path / "c")
    assert rows.fingerprint([moved, b]) == before
    b.write_text(json.dumps({"x": 3}))
    assert rows.fingerprint([moved, b]) != before
    a.write_text("xy"), b.write_text("z")
    one = rows.fingerprint([a, b])
    a.write_text("x"), b.write_text("yz")
    assert rows.fingerprint([a, b]) != one, "bytes moved from one file to the next"
    with pytest.raises(DataError, match=r"gone cannot be read: No such file"):
        rows.fingerprint([tmp_path / "gone"])
