"""The bug farm: inputs that once got a wrong answer, each with the right one. CONTRIBUTING.md says how one is added.

A folder is a kind of fault; its index.toml says what each case is, where it was seen and what is right.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import case_bench
import pytest
from case_bench import CASES, Bench, Case

ALL = [case for kind in case_bench.kinds() for case in case_bench.index(kind)]


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.kind}/{case.name}")
def test_case(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(case, tmp_path, capsys, monkeypatch)
    if case.command:
        case_bench.declared(case, bench)
        return
    spec = importlib.util.spec_from_file_location(f"case_{case.kind}_{case.name}", case.code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.check(bench)


@pytest.mark.parametrize("kind", case_bench.kinds())
def test_the_index_and_the_files_agree(kind: str) -> None:
    cases = case_bench.index(kind)
    assert case_bench.document(kind)["about"]
    coded = {case.name for case in cases if not case.command}
    assert coded == {path.stem for path in (CASES / kind).glob("*.py")}, "a case without its file, or a file without"
    for case in cases:
        assert case.what and case.seen and case.right, case.name
        assert not case.command or case.says or case.never, f"{case.name} compares nothing"
        assert not case.input or (case.inputs / case.input).exists(), f"{case.name}: no {case.input}"
