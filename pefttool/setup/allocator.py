"""How the C library hands out memory: by default it gives large blocks back to the system at once, over and over.

A training step allocates the same blocks of some MiB as the step before. glibc maps a block from the system and unmaps
it when it is freed, until its threshold has grown to that size (at most 32 MiB), and trims what it kept: steps touch
their memory for the first time, over and over, one page fault for 4 KiB. docs/benchmarks.md has what keeping brings.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt's names for them: <malloc.h>
#: Blocks up to here come from the heap: where glibc's own threshold ends, from the start. With larger ones there, too,
#: packed language models were slower (docs/benchmarks.md). Up to so much freed memory stays at the heap's end.
KEPT_BLOCK = 32 << 20
KEPT_TOTAL = 512 << 20
#: Where memory is dear, blocks from here on are mapped, and unmapped when they are freed.
GIVEN_BACK = 1 << 20
#: Whoever sets one of these has decided already, or runs another allocator.
DECIDED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def give_back_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Ask glibc, for the rest of this process, to map every larger block by itself. Whether it was asked.

    Left alone it raises its own threshold when such a block is freed, and keeps what comes after.
    """
    if platform.libc_ver()[0] != "glibc" or any(environment.get(name) for name in DECIDED):
        return False
    return bool(ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, GIVEN_BACK))


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Ask glibc, for the rest of this process, to keep freed blocks for the next step. Whether it was asked."""
    if platform.libc_ver()[0] != "glibc" or any(environment.get(name) for name in DECIDED):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_THRESHOLD, KEPT_BLOCK) and library.mallopt(TRIM_THRESHOLD, KEPT_TOTAL))
