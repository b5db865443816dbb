"""Safetensors a tensor at a time: what the library writes is read, and what is written the library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pefttool.api.errors import ModelError
from pefttool.files.safetensors_file import Reader, shapes_of, size, write

DTYPES = st.sampled_from([torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float32, torch.int64])
TENSORS = st.dictionaries(
    st.text("ab.é", min_size=1, max_size=6),
    st.tuples(DTYPES, st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(described=TENSORS)
def test_we_and_the_library_read_each_others_files(tmp_path: Path, described: dict) -> None:
    tensors = {n: torch.randint(0, 100, shape).to(dtype) for n, (dtype, shape) in described.items()}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write(ours, shapes_of(tensors), tensors.__getitem__)
    save_file(tensors, theirs, metadata={"format": "pt"})
    assert ours.stat().st_size == 8 + int.from_bytes(ours.read_bytes()[:8], "little") + sum(
        map(size, shapes_of(tensors).values())
    )
    assert all(load_file(ours)[n].equal(t) for n, t in tensors.items())
    with safe_open(ours, "pt") as file:
        assert set(file.keys()) == set(tensors) and file.metadata() == {"format": "pt"}
    for path in (ours, theirs):
        reader = Reader(path)
        assert reader.shapes == shapes_of(tensors)
        for name, tensor in tensors.items():
            assert reader.tensor(name).equal(tensor) and reader.tensor(name).dtype == tensor.dtype


def test_one_tensor_is_asked_for_at_a_time_and_aligned(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5), "c": torch.ones(1, dtype=torch.bfloat16)}
    asked: list[str] = []
    write(tmp_path / "m", shapes_of(tensors), lambda name: asked.append(name) or tensors[name])  # type: ignore[func-returns-value]
    assert asked == ["b", "c", "a"]  # the widest first
    assert int.from_bytes((tmp_path / "m").read_bytes()[:8], "little") % 8 == 0


def test_a_tensor_that_is_not_what_was_said_is_refused(tmp_path: Path) -> None:
    for wrong in (torch.ones(3), torch.ones(2, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="expected"):
            write(tmp_path / "m", {"a": (torch.float32, (2,))}, lambda name, wrong=wrong: wrong)


def test_a_file_that_ends_early_is_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="cut off in a"):
        Reader(path).tensor("a")


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(ModelError, match="a is of dtype F99; convert it to one of F16, F32"):
        Reader(path)


@pytest.mark.parametrize("damage", [b"", b"abc", b"\xff" * 100])
def test_a_file_without_a_header_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "m").write_bytes(damage)
    with pytest.raises(ValueError):
        Reader(tmp_path / "m")
