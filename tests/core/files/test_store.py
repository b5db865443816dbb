"""Files of tensors by key: whole or not there, shared by processes, bounded, and never the end of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pefttool.data import packed_rows
from pefttool.files import store
from pefttool.files.store import Store

KEY = "0a" * 32
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for i, dtype in enumerate(DTYPES):  # odd sizes, so that alignment matters
        made[f"{dtype}"] = torch.randint(0, 2, (3 + i, 5), generator=generator).to(dtype)
    return {**made, "none": torch.zeros(0, 7), "line": torch.arange(11)}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, told: list[str]) -> Store:
    return Store(tmp_path / "made", told.append)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


def test_what_is_saved_is_found_again_and_is_plain_safetensors(kept: Store, told: list[str]) -> None:
    assert kept.load(KEY) is None
    kept.save(KEY, tensors())
    found = kept.load(KEY)
    assert found is not None and same(found, tensors()) and not told
    (path,) = kept.folder.iterdir()
    assert path.name == f"{KEY}.safetensors" and same(load_file(path), tensors())


def test_tensors_are_mapped_not_read(kept: Store) -> None:
    """Resident anonymous memory does not grow by what is read."""
    kept.save(KEY, {"big": torch.ones(8 << 20)})
    before = anonymous()
    found = kept.load(KEY)
    assert found is not None and float(found["big"].sum()) == 8 << 20
    assert anonymous() - before < 8 << 20


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_parts_may_come_in_any_order(kept: Store) -> None:
    whole = torch.randn(9, 4)
    order = [(6, 9), (0, 1), (1, 6)]
    kept.make(KEY, {"x": (whole.dtype, (9, 4))}, lambda put: [put("x", a, whole[a:b]) for a, b in order] and None)
    found = kept.load(KEY)
    assert found is not None and torch.equal(found["x"], whole)


def test_a_flipped_bit_anywhere_and_a_truncated_file_are_noticed(kept: Store, told: list[str]) -> None:
    kept.save(KEY, {"x": torch.arange(24, dtype=torch.uint8)})
    (path,) = kept.folder.iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert kept.load(KEY) is None and not path.exists(), at
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert kept.load(KEY) is None and not path.exists(), end
    path.write_bytes(whole + b"more")
    assert kept.load(KEY) is None
    save_file({"x": torch.zeros(3)}, path)  # whole, but not ours
    assert kept.load(KEY) is None and not told


def test_a_failure_while_filling_leaves_nothing(kept: Store) -> None:
    def fill(put: store.Put) -> None:
        put("x", 0, torch.zeros(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.make(KEY, {"x": (torch.float32, (4,))}, fill)
    assert not list(kept.folder.iterdir()) and kept.load(KEY) is None


def test_a_folder_that_cannot_be_used_is_told_once(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").write_text("")
    broken = Store(tmp_path / "file" / "made", told.append)
    assert broken.load(KEY) is None
    with broken.alone(KEY):
        broken.save(KEY, tensors())
    assert broken.load(KEY) is None
    assert len(told) == 1 and "Not a directory" in told[0] and told[0].endswith("going on without")


@pytest.mark.parametrize("moment", ["before", "while writing", "at the end"])
def test_a_full_disk_is_told_and_leaves_nothing(
    kept: Store, told: list[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if moment == "before":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=store.SPARE + 100))
    elif moment == "at the end":
        monkeypatch.setattr("os.fsync", full)
    with limited_file_size(None if moment != "while writing" else 1 << 16):
        kept.save(KEY, {"x": torch.zeros(1 << 16)})
    assert kept.load(KEY) is None and not list(kept.folder.iterdir())
    assert (
        len(told) == 1 and {"before": "do not fit", "while writing": "File too large"}.get(moment, "space") in told[0]
    )


class limited_file_size:
    """The kernel refuses to let a file grow beyond so many bytes, as a full disk does."""

    def __init__(self, most: int | None) -> None:
        self.most = most

    def __enter__(self) -> None:
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if self.most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_the_least_recently_used_make_room(tmp_path: Path, told: list[str]) -> None:
    small = Store(tmp_path, told.append, limit=3000)
    keys = [f"{i:064d}" for i in range(3)]
    for age, key in enumerate(keys[:2]):
        small.save(key, {"x": torch.zeros(1200, dtype=torch.uint8)})
        os.utime(tmp_path / f"{key}.safetensors", (age + 1000, age + 1000))
    assert small.load(keys[0]) is not None  # used: now the other is the oldest
    small.save(keys[2], {"x": torch.zeros(1200, dtype=torch.uint8)})
    assert [small.load(key) is not None for key in keys] == [True, False, True]
    small.save(KEY, {"x": torch.zeros(3000, dtype=torch.uint8)})
    assert len(told) == 1 and "limit" in told[0] and small.load(keys[0]) is not None


def test_what_nobody_finished_is_removed_after_a_day(kept: Store) -> None:
    kept.folder.mkdir()
    old, new = kept.folder / "a.x.partial", kept.folder / "b.x.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - store.ABANDONED - 9,) * 2)
    kept.save(KEY, tensors())
    assert not old.exists() and new.exists()


MAKER = """
import sys, time
from pathlib import Path
import torch
from pefttool.files.store import Store
folder, mode = Path(sys.argv[1]), sys.argv[2]
kept = Store(folder, print)
def fill(put):
    (folder / f"made-by-{mode}").write_text("")
    print("filling", flush=True)
    for i in range(20):
        put("x", i, torch.full((1, 1000), float(i)))
        time.sleep(60 if mode == "killed" and i == 10 else 0.02)
with kept.alone("k"):
    found = kept.load("k")
    if found is None:
        kept.make("k", {"x": (torch.float32, (20, 1000))}, fill)
        found = kept.load("k")
assert found["x"][:, 0].tolist() == [float(i) for i in range(20)]
print("done", flush=True)
"""


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder), mode], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_at_once_one_makes_and_both_have(tmp_path: Path) -> None:
    both = [start(tmp_path, mode) for mode in ("one", "two")]
    assert all(process.communicate(timeout=60)[0].endswith("done\n") for process in both)
    assert len(list(tmp_path.glob("made-by-*"))) == 1
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("made-by")] == ["k.safetensors"]


def test_a_process_killed_while_it_makes_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    killed = start(tmp_path, "killed")
    assert killed.stdout is not None and killed.stdout.readline() == "filling\n"
    time.sleep(0.3)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "k.safetensors").exists()
    assert start(tmp_path, "one").communicate(timeout=60)[0] == "filling\ndone\n"


LISTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "ids": st.lists(st.integers(0, 300), max_size=6),
            "wide": LISTS,
            "values": st.lists(st.floats(allow_nan=False), min_size=1, max_size=3),
            "length": st.integers(0, 2**40),
            "cut": st.booleans(),
            "share": st.floats(allow_nan=False),
        }
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rows_come_back_as_they_were_types_included(rows: list[dict[str, Any]]) -> None:
    packed = packed_rows.pack(rows)
    assert packed is not None
    again = packed_rows.PackedRows(packed)
    assert len(again) == len(rows)
    for row, expected in zip(again, rows, strict=True):
        assert dict(row) == expected
        assert {n: type(v) for n, v in row.items()} == {n: type(v) for n, v in expected.items()}
        assert [type(i) for i in row["ids"]] == [int] * len(expected["ids"])
    assert dict(again[-1]) == rows[-1] and [dict(r) for r in again[1:]] == rows[1:]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"a": "text"}],
        [{"a": None}],
        [{"a": [1, 2.0]}],
        [{"a": [[1], [2]]}],
        [{"a": [True, 1]}],
        [{"a": 1}, {"a": 1.0}],
        [{"a": 1}, {"b": 1}],
        [{"a": [1]}, {"a": 1}],
        [{"a": 2**63}],
        [{"a": torch.zeros(2)}],
        [{"a": (1, 2)}],
    ],
    ids=repr,
)
def test_what_would_not_come_back_the_same_is_not_packed(rows: list[dict[str, Any]]) -> None:
    assert packed_rows.pack(rows) is None
