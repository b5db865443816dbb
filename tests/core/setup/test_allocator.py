"""Freed memory is kept where glibc is the allocator and nobody else has decided; it shows in page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pefttool.setup import allocator

FAULTS = """
import resource, sys
from pefttool.setup import allocator
if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory({})
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 30):  # each larger than any before: glibc maps it, and unmaps it when it is freed
    torch.empty(megabytes * 250_000).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(allocator.platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_touched_is_used_again():
    assert faults("leave") > 100_000  # pages of 4 KiB: those of all blocks
    assert faults("keep") < 33_000  # and those of a few


@pytest.mark.parametrize("name", allocator.DECIDED)
def test_who_has_decided_is_left_alone(name):
    assert not allocator.keep_freed_memory({name: "1"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory({})
