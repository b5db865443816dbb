"""parallel-text: two files whose lines belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool.config import recipe
from pefttool.config import registry as registries
from pefttool.config.registry import Registry
from pefttool.data import corpus, rows
from pefttool_text.parallel import ParallelText

FORMAT = ParallelText()


@pytest.fixture(scope="module")
def registry() -> Registry:
    return registries.build()


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def read(path: Path) -> list[Row | DataProblem]:
    return list(FORMAT.read(path, FORMAT.Options()))


def test_the_named_file_is_the_source(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path, corpus__en="one\ntwo\n", corpus__es="uno\ndos")
    (first, second) = rows.read([tmp_path / "corpus.es"], registry).rows
    assert list(first.values["translation"].items()) == [("es", "uno"), ("en", "one")]
    assert second.place == f"{tmp_path / 'corpus.es'}:2"


def test_in_a_folder_the_first_by_name_is_and_no_pair_is_read_twice(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path, train__en="one\ntwo\n", train__es="uno\ndos\n", dev__en="three\n", dev__es="tres\n", README__md="x")
    document = {"model": "m", "adapter": "lora", "data": {"train": str(tmp_path)}, "task": "seq2seq"}
    found = corpus.load(recipe.resolve(document, registry), registry)
    assert [dict(r.values["translation"]) for r in found.train] == [
        {"en": "one", "es": "uno"},
        {"en": "two", "es": "dos"},
    ]
    assert [dict(r.values["translation"]) for r in found.eval] == [{"en": "three", "es": "tres"}]
    (tmp_path / "dev.es").write_text("trece\n")
    assert corpus.load(recipe.resolve(document, registry), registry).sha256 != found.sha256


def test_a_pair_that_is_held_out_is_not_trained_on_either_way(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path, a__en="one\n", a__es="uno\n", b__en="two\n", b__es="dos\n")
    data = {"train": str(tmp_path), "eval": str(tmp_path / "b.en")}
    document = {"model": "m", "adapter": "lora", "data": data, "task": "seq2seq"}
    found = corpus.load(recipe.resolve(document, registry), registry)
    assert [r.values["translation"]["en"] for r in found.train] == ["one"]
    assert [r.values["translation"]["en"] for r in found.eval] == ["two"]


def test_unequal_files_are_named_with_their_lines(tmp_path: Path) -> None:
    write(tmp_path, corpus__en="one\ntwo\nthree\n", corpus__es="uno\ndos\n")
    with pytest.raises(DataError, match=r"corpus\.en has 3 lines and .*corpus\.es has 2: line i of one"):
        read(tmp_path / "corpus.en")


@pytest.mark.parametrize(("others", "found"), [({}, "there is none"), ({"a__es": "x", "a__fr": "y"}, "a.es, a.fr")])
def test_the_other_file_has_to_be_there_and_alone(tmp_path: Path, others: dict[str, str], found: str) -> None:
    write(tmp_path, a__en="one\n", b__es="no", **others)
    assert FORMAT.sniff(tmp_path / "a.en") is None
    with pytest.raises(DataError, match=found):
        read(tmp_path / "a.en")


def test_an_empty_line_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, a__en="one\n\nthree\nfour\n", a__es="uno\ndos\n \ncuatro\n")
    first, second, third, fourth = read(tmp_path / "a.en")
    assert isinstance(first, Row) and isinstance(fourth, Row)
    assert str(second) == f"{tmp_path / 'a.en'}:2: found an empty line, expected text or no line in either file"
    assert isinstance(third, DataProblem) and third.line == 3
    assert third.message.startswith(f"{tmp_path / 'a.es'}:3: found an empty line")


def test_bytes_that_are_no_text_are_told_of_either_file(tmp_path: Path) -> None:
    write(tmp_path, a__en="one\ntwo\n")
    (tmp_path / "a.es").write_bytes(b"uno\ndo\xff\n")
    _, second = read(tmp_path / "a.en")
    assert isinstance(second, DataProblem) and f"{tmp_path / 'a.es'}:2: found byte 0xff" in second.message


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("a.en", "a.es"), True),
        (("a.pt_BR", "a.zh-Hant"), True),
        (("NAME.en-es.en", "NAME.en-es.es"), True),
        (("a [1].de", "a [1].fr"), True),
        (("a.txt", "a.md"), False),
        (("a.en", "b.es"), False),
        (("a.en", "a.txt"), False),
    ],
)
def test_suffixes_are_languages(tmp_path: Path, names: tuple[str, str], known: bool) -> None:
    for name in names:
        (tmp_path / name).write_text("x\n")
    assert all(bool(FORMAT.sniff(tmp_path / name)) is known for name in names)
