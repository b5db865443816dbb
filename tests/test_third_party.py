"""The example packages, installed as a stranger would install them: found, listed, run, and they keep the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_run import CLASSIFY, SMALL, pefttool
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGES = ("third_party_adapter", "third_party_ranks")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    packages = [str(EXAMPLES / package) for package in PACKAGES]
    subprocess.run([*command, "--target", str(target), *packages], check=True, timeout=300)
    return str(target)


def test_it_is_found_through_its_entry_point(installed: str) -> None:
    assert "bitfit" not in {a["name"] for a in json.loads(pefttool("adapters", "--json").stdout)}
    adapters = json.loads(pefttool("adapters", "--json", PYTHONPATH=installed).stdout)
    assert "bitfit" in {a["name"] for a in adapters}
    shown = pefttool("adapters", "show", "bitfit", PYTHONPATH=installed).stdout
    assert "which" in shown and "attention" in shown
    plugins = json.loads(pefttool("plugins", "--json", PYTHONPATH=installed).stdout)["plugins"]
    assert [p["distribution"] for p in plugins if p["name"] == "bitfit"] == ["pefttool-bitfit"]
    blocked = pefttool("adapters", "--json", "--without", "bitfit", PYTHONPATH=installed).stdout
    assert "bitfit" not in {a["name"] for a in json.loads(blocked)}


def test_it_trains_and_its_run_can_be_used(installed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("run", "--adapter", "bitfit", *CLASSIFY, *SMALL, "--out", str(out), "--json")
    result = json.loads(pefttool(*arguments, PYTHONPATH=installed).stdout)
    changes = load_file(out / "adapter" / "adapter.safetensors")
    # MiniLM: 6 blocks of 6 linear layers, and the pooler. Every change starts at zero and must have been trained; only
    # a key's bias has no gradient but rounding, since softmax does not see it.
    assert len(changes) == 37 and all(t.abs().max() > 1e-3 for n, t in changes.items() if ".key." not in n)
    assert set(result["after"]) == set(result["before"]) == {"accuracy", "f1_macro", "loss"}
    facts = json.loads((out / "adapter" / "pefttool.json").read_text())
    assert (facts["adapter_distribution"], facts["adapter_version"]) == ("pefttool-bitfit", "0.1.0")
    evaluated = json.loads(pefttool("eval", str(out), "--json", PYTHONPATH=installed).stdout)
    assert evaluated["loss"] == pytest.approx(result["after"]["loss"], rel=1e-3)
    missing = pefttool("eval", str(out), check=False)
    assert missing.returncode == 2 and "unknown adapter 'bitfit'" in missing.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_it_keeps_the_contract(installed: str, package: str) -> None:
    folder = EXAMPLES / package
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder / "tests"),
        ],
        env={**os.environ, "PYTHONPATH": installed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout
