"""The packed file: ordinary safetensors, aligned, whole or not there."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pefttool.files.sectioned_file import ALIGNMENT, PackedFile, TensorSection, Unreadable, write

DTYPES = st.sampled_from([torch.uint8, torch.int8, torch.bfloat16, torch.float16, torch.float32, torch.int64])
SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
SECTIONS = st.lists(st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=5), min_size=1, max_size=4)


def made(sections: list[list[tuple[torch.dtype, tuple[int, ...]]]]) -> list[dict[str, torch.Tensor]]:
    return [
        {f"{i}.{j}": torch.randint(0, 100, shape).to(dtype) for j, (dtype, shape) in enumerate(section)}
        for i, section in enumerate(sections)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sections=SECTIONS)
def test_what_is_written_is_read_by_us_and_by_safetensors(tmp_path: Path, sections: list) -> None:
    parts = made(sections)
    everything = {name: tensor for part in parts for name, tensor in part.items()}
    rooms = [TensorSection.of(part) for part in parts]
    path = tmp_path / "m.safetensors"
    write(path, rooms, everything.__getitem__, {"seed": "7"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    file = PackedFile(path)
    assert file.metadata == {"seed": "7"}
    with safe_open(path, "pt") as theirs:
        assert {n for n in theirs.keys() if not n.startswith("padding.")} == everything.keys()  # noqa: SIM118
        for name, tensor in everything.items():
            assert torch.equal(theirs.get_tensor(name), tensor) and torch.equal(file.tensor(name), tensor)
    for room, part in zip(rooms, parts, strict=True):
        start = file.find(room)
        flat = file.flat(room, start)
        assert flat.data_ptr() % mmap.PAGESIZE == 0 and room.size % mmap.PAGESIZE == 0
        for name, view in room.views(flat).items():
            assert torch.equal(view, part[name]) and view.data_ptr() % ALIGNMENT == 0


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"

    def fails(name: str) -> torch.Tensor:
        raise KeyError(name)

    with pytest.raises(KeyError):
        write(path, [TensorSection.of({"a": torch.ones(3)})], fails, {})
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a is float32 \(4,\), expected float32 \(3,\)"):
        write(tmp_path / "m", [TensorSection.of({"a": torch.ones(3)})], lambda name: torch.ones(4), {})


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_unreadable(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.safetensors"
    write(path, [TensorSection.of({"a": torch.ones(3)})], lambda name: torch.ones(3), {})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1], "noise": b"\xff" * 100, "empty": b""}[damage])
    with pytest.raises(Unreadable):
        PackedFile(path)


def test_another_layout_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, [TensorSection.of({"a": torch.ones(3)})], lambda name: torch.ones(3), {})
    with pytest.raises(Unreadable, match="expected"):
        PackedFile(path).find(TensorSection.of({"a": torch.ones(4)}))


def test_writing_to_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, [TensorSection.of({"a": torch.ones(3)})], lambda name: torch.ones(3), {})
    PackedFile(path).tensor("a").zero_()
    assert torch.equal(PackedFile(path).tensor("a"), torch.ones(3))
