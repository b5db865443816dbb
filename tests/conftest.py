"""Shared fixtures: installed fake distributions, and the registry of what is really installed."""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pefttool.config import registry as registries
from pefttool.config.registry import Registry

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).with_name("support")))  # modules that several tests import

from fake_plugins import Install
from terminal import Terminal

# `make test` tries the same cases every time: what it says depends on the code alone. `make test-all` tries new ones.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("searching", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread: on matrices this small more only wait for each other, and what libraries
    allocate for each is not counted by whoever states memory."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test fills."""
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a fake distribution, each into a folder of its own, as pip would: module, METADATA, entry_points.txt."""
    before = set(sys.modules)
    folders: list[Path] = []

    def add(distribution: str, code: str, plugin: str | None = None, version: str = "1.0") -> Path:
        plugin = plugin or distribution
        module = re.sub(r"\W", "_", f"fake_{distribution}_{tmp_path.name}")
        folder = tmp_path / f"site{len(folders)}"
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[pefttool]\n{plugin} = {module}\n")
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(folder)  # invalidates the import system's caches, too
        folders.append(folder)
        return folder

    yield add
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Everything that the installed plugins register."""
    return registries.build()


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The command line, without any plugin but those it is told to `allow`."""
    return Terminal(capsys, monkeypatch)
