"""What is shipped is what is there: plugin folders, `packages`, entry points, wheel, and the wheel in a fresh venv."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pefttool

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY_POINTS = PROJECT["project"]["entry-points"]["pefttool"]
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def build(target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_plugin_folders_packages_and_entry_points_agree() -> None:
    folders = {path.parent.name for path in ROOT.glob("plugins/*/__init__.py")}
    assert folders == set(ENTRY_POINTS.values())
    assert folders | {"pefttool"} == {Path(package).name for package in PACKAGES if "kernels" not in package}
    assert all((ROOT / package / "__init__.py").is_file() for package in PACKAGES)
    assert all(module == f"pefttool_{name}" for name, module in ENTRY_POINTS.items())


def test_both_places_state_one_version() -> None:
    assert PROJECT["project"]["version"] == pefttool.__version__


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (points,) = (name for name in files if name.endswith(".dist-info/entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(points).decode())
    assert dict(parser["pefttool"]) == ENTRY_POINTS
    assert dict(parser["console_scripts"]) == {"pefttool": "pefttool.cli:main"}
    shipped = {name for name in files if ".dist-info/" not in name}
    there = {
        str(path.relative_to((ROOT / package).parent))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == there
    assert {"pefttool/py.typed", "pefttool/config/first_run.yaml", "pefttool/cli/__init__.py"} <= shipped
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_the_source_archive_can_make_the_wheel(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {f"{package}/__init__.py" for package in PACKAGES}
    assert needed | {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs"))]


def test_the_wheel_works_in_a_fresh_venv(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment's site-packages; the editable pefttool there must not be what runs."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=120)
    (site,) = venv.glob("lib/python*/site-packages")
    # A .pth line adds the folder only: the .pth files inside it, an editable's among them, are not run.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PEFTTOOL_PLUGINS", "VIRTUAL_ENV")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(python), "-c", "import pefttool, pefttool_lora; print(pefttool.__file__, pefttool_lora.__file__)")
    assert all(Path(path).is_relative_to(site) for path in where.split())
    shown = json.loads(run(str(venv / "bin" / "pefttool"), "plugins", "--json"))
    ours = {plugin["name"] for plugin in shown["plugins"] if plugin["distribution"] == "pefttool"}
    assert ours == set(ENTRY_POINTS)
    assert not [complaint for complaint in shown["complaints"] if " from pefttool " in complaint]
    assert run(str(venv / "bin" / "pefttool"), "--version") == f"pefttool {pefttool.__version__}\n"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(r.specifier).startswith("==") and r.url is None for r in found)
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def test_every_dependency_is_pinned_inside_its_range() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        if requirement.name == PROJECT["project"]["name"]:
            assert requirement.extras < set(PROJECT["project"]["optional-dependencies"])  # `all` is the others
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert pinned["torch"] == "2.13.0"
