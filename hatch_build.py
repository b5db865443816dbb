"""Compiles the optional CPU code into the wheel, where there is a C compiler for it; without one the wheel is pure.

The library is plain C behind ctypes: one build serves every Python version. PEFTTOOL_NATIVE=0 leaves it out. Nothing
is ever compiled when pefttool runs.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("kernels/pefttool_kernels/cpu")
SOURCES = ("tile.c", "few_rows.c")
LIBRARY = "_native.so"
#: Contraction would turn a product and a sum into one rounding: the decoded weights must be bitsandbytes' own.
FLAGS = ("-O3", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off")


class NativeCode(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile beside the sources, and name the platform in the wheel's tag if that worked."""
        folder = Path(self.root) / FOLDER
        missing = obstacle() or compiled(folder)
        if missing:
            (folder / LIBRARY).unlink(missing_ok=True)  # one from another time would be shipped without being named
            self.app.display_warning(f"pefttool: the optional CPU code is left out: {missing}")
            return
        build_data["artifacts"].append(str(FOLDER / LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def obstacle() -> str | None:
    """Why there is no point in trying, or None."""
    if os.environ.get("PEFTTOOL_NATIVE") == "0":
        return "PEFTTOOL_NATIVE is 0"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"it is written for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    return None


def compiled(folder: Path) -> str | None:
    """Compile the library into `folder`; why it failed, in a line, or None."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler ({compiler[0]!r}): install one, and pefttool again"
    aside = folder / f"{LIBRARY}.{os.getpid()}"
    command = [*compiler, *FLAGS, "-o", str(aside), *(str(folder / source) for source in SOURCES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            return f"{compiler[0]} failed: {first}"
        os.replace(aside, folder / LIBRARY)  # whoever has loaded the old one keeps it
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"{compiler[0]} did not run: {problem}"
    finally:
        aside.unlink(missing_ok=True)
    return None
