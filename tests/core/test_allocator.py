"""Freed memory is kept where glibc is the allocator and nobody else has decided; it shows in page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pefttool import allocator

FAULTS = """
import resource, sys
from pefttool import allocator
if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory({})
import torch
def step():
    for _ in range(3):
        torch.empty(10_000_000).zero_()  # 40 MB: beyond what glibc keeps by itself
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted(faults() for _ in range(9))[4])
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(allocator.platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_touches_no_memory_for_the_first_time():
    assert faults("leave") > 5_000
    assert faults("keep") < 100


@pytest.mark.parametrize("name", allocator.DECIDED)
def test_who_has_decided_is_left_alone(name):
    assert not allocator.keep_freed_memory({name: "1"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory({})
