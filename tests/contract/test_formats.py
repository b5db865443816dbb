"""Every registered format keeps its contract."""

from __future__ import annotations

from pathlib import Path

import format_files
import pytest
from format_files import SAMPLES

from pefttool.config import registry as registries
from pefttool.testing import check_format

REGISTRY = registries.build()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return format_files.write(tmp_path_factory.mktemp("formats"))


def test_no_format_is_left_out() -> None:
    assert set(REGISTRY.formats) == set(SAMPLES)


@pytest.mark.parametrize("name", REGISTRY.formats)
def test_contract(name: str, files: dict[str, Path]) -> None:
    # What only is asked for by name (a CSV file of series) is another format's, too.
    own = REGISTRY.formats[name]
    others = [
        path
        for other, path in files.items()
        if other != name
        and not REGISTRY.formats[other].by_name_only
        and (REGISTRY.formats[other].general or not own.general)
    ]
    expected = SAMPLES[name].expected(files[name])
    check_format(REGISTRY.formats[name], files[name], expected, SAMPLES[name].lines, others)
