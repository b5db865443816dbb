"""Readers against noise: whatever bytes they are given, they answer with an error of pefttool's, or with what is there.

`make test` draws the same examples every time; PEFTTOOL_FUZZ=100 draws a hundred times as many, new ones each time.
"""

from __future__ import annotations

import os
import shutil
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bad_checkpoints
import format_files
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError, ModelError, PefttoolError, Refused, RunError
from pefttool.api.values import DataProblem, Row
from pefttool.config import recipe as recipes
from pefttool.config import recipe_file
from pefttool.config import registry as registries
from pefttool.config.recipe import Recipe
from pefttool.files.model_folder import check_folder
from pefttool.runs import checkpoint
from pefttool.toolkit import peft_folder
from pefttool_kernels.layout import (
    BLOCK,
    NESTED_BLOCK,
    DamagedWeight,
    FourBitWeight,
    RepackedWeight,
    UnsupportedLayout,
)

TIMES = int(os.environ.get("PEFTTOOL_FUZZ", "1"))
REGISTRY = registries.build()


def bounded(examples: int) -> Any:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


#: What breaks readers more often than noise does.
TOKENS = (
    *(b"", b"\0", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b"'", b",", b"\t", b";", b":", b"::"),
    *(b"{", b"}", b"[", b"]", b"[" * 2000, b"null", b"NaN", b"-1", b"1e999", b"9" * 5000, b"true", b"\\ud800", b"?"),
    *(b"@data\n", b"(1,2)", b"-DOCSTART-", b"../", b"/dev/null", b"PAR1", b"\x80\x04.", b" ", b"\x1b[31m", b"\x85"),
)
EDIT = st.tuples(
    st.sampled_from(("overwrite", "insert", "delete", "repeat", "cut")),
    st.floats(0, 1),
    st.integers(1, 24),
    st.sampled_from(TOKENS) | st.binary(max_size=6),
)
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def edited(content: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    for kind, place, length, token in edits:
        at = int(place * len(content))
        before, part, after = content[:at], content[at : at + length], content[at + length :]
        content = {
            "overwrite": before + token + content[at + len(token) :],
            "insert": before + token + part + after,
            "delete": before + after,
            "repeat": before + part * 3 + after,
            "cut": before,
        }[kind]
    return content


@pytest.fixture(scope="module")
def unpickled() -> Iterator[list[Any]]:
    """Classes that are looked for to unpickle something, as long as the tests of this module run."""
    found: list[Any] = []
    watching = [True]
    sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" and watching[0] else None)
    yield found
    watching[0] = False


# --- recipes ---------------------------------------------------------------------------------------------------

KEYS = st.text(max_size=5) | st.sampled_from(
    [
        "model",
        "adapter",
        "task",
        "data",
        "train",
        "memory",
        "generation",
        "quantize",
        "out",
        "device",
        "dtype",
        "trust_remote_code",
    ]
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["lora", "chat", "csv", "nf4", "example:x", "", "~", "1e3", "2026-01-01", "../x", "6GiB"])
)
INNER = st.sampled_from(["name", "r", "train", "epochs", "learning_rate", "format", "format_options", "budget", "text"])
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER | PLAIN, inner, max_size=4)),
    max_size=6,
)


def resolves(document: Any) -> None:
    try:
        found = recipes.resolve(document, REGISTRY)
    except Refused as error:
        assert error.complaints and all("\n" not in line for line in error.complaints)
        return
    except PefttoolError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(found, Recipe)
    assert recipes.resolve(recipes.yaml_text.load(found.as_yaml()), REGISTRY).as_document() == found.as_document()


@bounded(200)
@given(DOCUMENTS)
def test_any_document_resolves_or_is_refused(document: dict[Any, Any]) -> None:
    resolves(document)


@bounded(150)
@given(edits=EDITS, document=st.sampled_from([recipes.FIRST_RUN.read_bytes(), b"model: m\nadapter: {name: lora}\n"]))
def test_any_recipe_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[Any], document: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(edited(document, edits))
    try:
        found = recipe_file.read(path)
    except PefttoolError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    resolves(found)


@bounded(150)
@given(st.lists(st.tuples(KEYS, INNER, st.text(string.printable, max_size=10)), max_size=3))
def test_any_override_is_taken_or_refused(overrides: list[tuple[str, str, str]]) -> None:
    given = [f"{section}.{key}={text}" for section, key, text in overrides]
    try:
        document = recipes.combine({"model": "m", "adapter": "lora"}, {"data.train": "x"}, given)
    except Refused as error:
        assert all("\n" not in line for line in error.complaints)
        return
    resolves(document)


# --- data ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    written = format_files.write(tmp_path_factory.mktemp("good"))
    return {name: path.read_bytes() for name, path in written.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good files, beside which damaged ones are laid."""
    folder = tmp_path_factory.mktemp("fuzzed")
    format_files.write(folder)
    return folder


@pytest.mark.parametrize("name", list(REGISTRY.formats))
def test_any_file_is_rows_and_problems_or_an_error(
    name: str, good_files: dict[str, bytes], place: Path, unpickled: list[Any]
) -> None:
    chosen, sample = REGISTRY.formats[name], format_files.SAMPLES[name]
    path = place / sample.file

    @bounded(12 if name in ("parquet", "text", "images", "recordings") else 60)
    @given(edits=EDITS, noise=st.none() | st.binary(max_size=300))
    def check(edits: list[Any], noise: bytes | None) -> None:
        path.write_bytes(edited(good_files[name], edits) if noise is None else noise)
        try:
            chosen.sniff(path)
            records = list(chosen.read(path, chosen.Options()))
        except DataError as error:
            assert path.name in str(error) and "\n" not in str(error)
            return
        assert all(isinstance(record, Row | DataProblem) and record.line >= 1 for record in records)
        assert all("\n" not in record.message for record in records if isinstance(record, DataProblem))
        judge([record for record in records if isinstance(record, Row)])

    before = len(unpickled)
    check()
    assert unpickled[before:] == []
    path.write_bytes(good_files[name])


def judge(rows: list[Row]) -> None:
    """Every task has an opinion about every row, whatever it holds."""
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    for task in REGISTRY.tasks.values():
        options = task.Options()
        task.recognise(columns, [row.values for row in rows])
        for row in rows[:3]:
            for complaint in (task.check_row(row.values, options), task.check_input(row.values, options)):
                assert complaint is None or (isinstance(complaint, str) and "\n" not in complaint)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    [
        "text",
        "label",
        "messages",
        "prompt",
        "chosen",
        "rejected",
        "tokens",
        "tags",
        "question",
        "context",
        "answers",
        "image",
        "objects",
        "audio",
        "series",
        "future",
        "items",
        "source",
        "target",
        "translation",
        "class",
        "a",
    ]
)


@bounded(150)
@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), min_size=1, max_size=3))
def test_tasks_judge_any_row(rows: list[dict[str, Any]]) -> None:
    judge([Row(values, "fuzzed", number) for number, values in enumerate(rows, 1)])


# --- packed weights --------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.uint8, torch.float32, torch.int8, torch.bfloat16, torch.int64])


@st.composite
def tensors(draw: Any, sizes: tuple[int, ...]) -> torch.Tensor:
    length = draw(st.sampled_from(sizes) | st.integers(0, 400))
    made = torch.zeros(max(0, length), dtype=draw(DTYPES))
    shape = draw(st.sampled_from(["flat", "column", "strided"]))
    return {"flat": made, "column": made.view(-1, 1), "strided": made.repeat(2)[::2]}[shape]


@st.composite
def weights(draw: Any) -> tuple[torch.Tensor, Any]:
    """A packed weight and its state: right ones, too, and those that are nearly so."""
    n, k = draw(st.integers(-1, 40)), draw(st.integers(0, 200))
    scales = max(0, -(-n * k // BLOCK))
    nested = draw(st.booleans())
    kind = torch.uint8 if nested else torch.float32
    right = draw(st.booleans())
    packed = torch.zeros(max(0, -(-n * k // 2)), dtype=torch.uint8) if right else draw(tensors((n * k // 2, 0)))
    absmax = torch.zeros(scales, dtype=kind) if right else draw(tensors((scales, scales - 1 if scales else 0)))
    code = torch.zeros(16) if right else draw(tensors((16, 15)))
    second = -(-scales // NESTED_BLOCK)
    inner = SimpleNamespace(
        absmax=torch.zeros(second) if right else draw(tensors((second,))),
        code=torch.zeros(256) if right else draw(tensors((256, 255))),
        blocksize=draw(st.sampled_from([NESTED_BLOCK, NESTED_BLOCK, 64])),
    )
    state = SimpleNamespace(
        absmax=absmax,
        code=code,
        shape=torch.Size((max(n, 0), k)) if n >= 0 else (n, k),
        blocksize=draw(st.sampled_from([BLOCK, BLOCK, BLOCK, 128])),
        quant_type=draw(st.sampled_from(["nf4", "fp4"])),
        nested=nested,
        state2=inner,
        offset=torch.zeros(()) if right else draw(tensors((1, 0))),
        packing_format_for_cpu=draw(st.sampled_from([False, False, False, True])),
    )
    return packed, state


@bounded(300)
@given(weights())
def test_no_view_reaches_beyond_what_is_stored(stored: tuple[torch.Tensor, Any]) -> None:
    """A kernel reads as much as the shape says: a view of parts that are smaller would read others' memory."""
    packed, state = stored
    try:
        view = FourBitWeight.of(packed, state)
    except (UnsupportedLayout, RepackedWeight, DamagedWeight) as error:
        assert "\n" not in str(error)
        return
    assert view.packed.dtype == torch.uint8 and view.packed.is_contiguous()
    assert view.packed.numel() * 2 >= view.numel >= 0
    assert view.absmax.numel() * BLOCK >= view.numel
    assert view.code.numel() >= 16 and view.code.dtype == torch.float32
    assert view.nested == (view.absmax.dtype == torch.uint8)
    if view.nested:
        assert view.nested_absmax is not None and view.nested_code is not None and view.offset is not None
        assert view.nested_absmax.numel() * NESTED_BLOCK >= view.absmax.numel() - NESTED_BLOCK + 1
        assert view.nested_code.numel() >= 256 and view.offset.numel() >= 1


# --- checkpoints, adapters and models ----------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_any_checkpoint_is_loaded_or_refused(sealed: bool, tmp_path: Path, unpickled: list[Any]) -> None:
    """`sealed`: with hashes that are right all the same, as somebody who makes checkpoints up would have them."""
    good = bad_checkpoints.good(tmp_path / "good")
    names = sorted(path.name for path in good.iterdir() if not sealed or path.suffix in (".json", ".safetensors"))
    target = tmp_path / "fuzzed" / "step-3"

    @bounded(60)
    @given(name=st.sampled_from(names), edits=EDITS)
    def check(name: str, edits: list[Any]) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(good, target)
        content = (target / name).read_bytes()
        changed = edited(content, edits)
        (target / name).write_bytes(changed)
        if sealed:
            bad_checkpoints.reseal(target)
        live = bad_checkpoints.training()
        try:
            checkpoint.verify(target)
            checkpoint.load(target, live)
        except RunError as error:
            assert "step-3" in str(error) and "\n" not in str(error)
            return
        assert sealed or changed == content, "a changed checkpoint was taken"

    before = len(unpickled)
    check()
    assert unpickled[before:] == []


@bounded(60)
@given(edits=EDITS)
def test_any_file_of_tensors_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, edits: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("tensors", numbered=True)
    peft_folder.write_tensors(folder / "model.safetensors", {"a": torch.ones(3), "b": torch.zeros(2, 2)})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    path = folder / "model.safetensors"
    path.write_bytes(edited(path.read_bytes(), edits))
    for read in (lambda: check_folder(folder, "'fuzzed'"), lambda: peft_folder.read_tensors(path)):
        try:
            read()
        except ModelError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    shutil.rmtree(folder)


def test_edits_change_what_they_are_given() -> None:
    """Teeth: readers would pass any test on files that stay as they are."""
    seen = set()

    @bounded(60)
    @given(EDITS)
    def check(edits: list[Any]) -> None:
        seen.add(edited(b"model: m\nadapter: lora\n", edits))

    check()
    assert len(seen) > 30
