"""Other people's test suites, fetched as they publish them, run with the libraries as they are and with our parts."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pefttool.files.cache_folder import cache_folder

SUITES = Path(__file__).parents[1] / "suites"
#: Which parts are in place: a plugin of `tests/suites` reads it.
PARTS = "PEFTTOOL_SUITE_PARTS"
#: Where a plugin writes, one line each, how often which of our parts has run.
COUNTS = "PEFTTOOL_SUITE_COUNTS"
FAILED = ("failure", "error")


@dataclass(frozen=True)
class Suite:
    """Tests out of a source archive on the package index.

    package, version    which archive
    licence             under which its authors let it be run
    files               of the tests, in the archive
    plugin              module of `tests/suites` that puts our parts in place
    chosen              pytest's `-k`: those that reach what we have a part for
    path                folders of the archive that are imported from, besides what is installed
    """

    package: str
    version: str
    licence: str
    files: tuple[str, ...]
    plugin: str
    chosen: str = ""
    path: tuple[str, ...] = (".",)


@dataclass(frozen=True)
class Outcome:
    """What a run of a suite left: names of tests by how they ended; `counts` of our parts' calls."""

    passed: frozenset[str]
    failed: frozenset[str]
    skipped: Mapping[str, str]
    reasons: Mapping[str, str]
    counts: Mapping[str, int] = field(default_factory=dict)


def fetch(suite: Suite) -> Path:
    """The unpacked archive, in the user's cache. The test is skipped, and says so, where it cannot be had."""
    kept = cache_folder() / "suites"
    folder = kept / f"{suite.package.replace('-', '_')}-{suite.version}"
    if folder.is_dir():
        return folder
    kept.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(kept), f"{suite.package}=={suite.version}"], capture_output=True, text=True
    )
    archives = sorted(kept.glob(f"{folder.name}.tar.gz"))
    if done.returncode or not archives:
        why = (done.stderr.strip().splitlines() or ["no source archive came"])[-1]
        pytest.skip(f"{suite.package} {suite.version} cannot be fetched: {why}")
    with tempfile.TemporaryDirectory(dir=kept) as aside:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(aside, filter="data")
        unpacked = Path(aside, folder.name)
        for file in suite.files:  # an archive may leave out what makes its tests a package, which they need
            (unpacked / file).with_name("__init__.py").touch()
        unpacked.rename(folder)
    archives[0].unlink()
    return folder


def run(suite: Suite, parts: str, folder: Path, seconds: float) -> Outcome:
    """The suite in a process of its own, with these parts in place: "theirs", or what the plugin calls ours."""
    archive = fetch(suite)
    report, counts = folder / f"{parts}.xml", folder / f"{parts}.txt"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SUITES), *(str(archive / inner) for inner in suite.path)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        PARTS: parts,
        COUNTS: str(counts),
    }
    options = ["-q", "-p", suite.plugin, "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={archive}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "-k", suite.chosen, *suite.files],
        cwd=archive,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert report.is_file() and done.returncode in (0, 1), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return _read(report, counts)


def _read(report: Path, counts: Path) -> Outcome:
    passed, failed, skipped, reasons = set(), set(), {}, {}
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        ends = {part.tag: part for part in case}
        wrong = next((ends[tag] for tag in FAILED if tag in ends), None)
        if wrong is not None:
            failed.add(name)
            reasons[name] = next(iter((wrong.get("message") or "").splitlines()), "")
        elif "skipped" in ends:
            skipped[name] = ends["skipped"].get("message") or ""
        else:
            passed.add(name)
    ran: dict[str, int] = {}
    for line in counts.read_text().splitlines() if counts.is_file() else ():
        ran[line] = ran.get(line, 0) + 1
    return Outcome(frozenset(passed), frozenset(failed), skipped, reasons, ran)
