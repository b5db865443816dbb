"""Downloaded hub files on disk, in the layout of the hub's own cache (shared with transformers and others):

    models--ORG--NAME/refs/REVISION           the commit of a branch or tag, when it was last asked
    models--ORG--NAME/blobs/DIGEST            a file, named by its SHA-256 or git SHA-1
    models--ORG--NAME/blobs/DIGEST.incomplete the part of it that has arrived
    models--ORG--NAME/snapshots/COMMIT/FILE   a link to its blob

Beside it, pefttool keeps one record a commit: the hashes the hub stated, and which files were found to match them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pefttool.api.errors import ModelError
from pefttool.models import hub_client
from pefttool.models.hub_client import CHUNK, SHA1, SHA256, Listing, RemoteFile, Unreachable, is_digest


@dataclass
class Record:
    """A commit's files and, for each that was verified, the size and modification time it had then."""

    listing: Listing
    verified: dict[str, list[int]] = field(default_factory=dict)
    unverified: int = 0


class HubStore:
    """The cached files of one repository. `records` is the folder of pefttool's own records."""

    def __init__(self, repository: str, records: Path) -> None:
        from huggingface_hub import constants

        self.repository = repository
        folder = f"models--{repository.replace('/', '--')}"
        self.folder = Path(constants.HF_HUB_CACHE).expanduser() / folder
        self.locks = Path(constants.HF_HUB_CACHE).expanduser() / ".locks" / folder
        self.records = records / repository.replace("/", "--")

    def load(self, commit: str) -> Record | None:
        """What is known of `commit`, or None; an unreadable record is as good as none."""
        try:
            found = json.loads((self.records / f"{commit}.json").read_bytes())
            files = {str(n): RemoteFile(int(f["size"]), str(f["digest"])) for n, f in found["files"].items()}
            return Record(Listing(commit, files), dict(found["verified"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, revision: str, commit: str, replace: bool) -> None:
        """Write down which commit a branch or tag is at, for the day when the hub cannot be asked.

        Without `replace` (only configs were fetched) an older commit, whose weights may be here, is kept.
        """
        path = self.folder / "refs" / revision
        if revision != commit and (replace or not path.exists()):
            _write(path, commit)

    def cached(self, revision: str, reason: str) -> Record:
        """What the cache holds of `revision`. Raises ModelError, naming `reason`, if that is nothing."""
        try:
            commit = revision if SHA1.fullmatch(revision) else (self.folder / "refs" / revision).read_text().strip()
        except (OSError, ValueError):
            commit = ""
        record = self.load(commit) if SHA1.fullmatch(commit) else None
        snapshot = self.folder / "snapshots" / commit
        if record is not None:
            return record
        if not commit or not snapshot.is_dir():
            raise ModelError(
                f"model {self.repository!r} at {revision!r} is not in the cache, and {reason}:"
                " run once with the hub in reach, or give a folder"
            )
        files = {p.relative_to(snapshot).as_posix(): _from_link(p) for p in sorted(snapshot.rglob("*")) if p.is_file()}
        return Record(Listing(commit, files, complete=False))

    def fetch(self, record: Record, names: Iterable[str], progress: Callable[[str, int, int], None] | None) -> Path:
        """Have `names` in the snapshot folder, verified, and return that folder. Raises ModelError."""
        snapshot = self.folder / "snapshots" / record.listing.commit
        wanted = {name: self._expected(record, name) for name in names}
        self._require_space({n: f for n, f in wanted.items() if not (snapshot / n).is_file()})
        for name, file in wanted.items():
            path = snapshot / name
            if not path.is_file():
                self._download(record.listing.commit, name, file, path, progress)
            elif record.verified.get(name) == _state(path):
                continue
            elif file.digest:
                self._verify(path, name, file, progress)
            else:
                record.unverified += 1
                continue
            record.verified[name] = _state(path)
            if record.listing.complete:
                self._save(record)
        return snapshot

    def _expected(self, record: Record, name: str) -> RemoteFile:
        file = record.listing.files.get(name)
        if file is None:
            raise ModelError(
                f"model {self.repository!r}: {name} is not in the cache:"
                " run once with the hub in reach, or give a folder"
            )
        if not file.digest and record.listing.complete:
            raise ModelError(f"model {self.repository!r}: the hub states no hash for {name}, so it cannot be verified")
        return file

    def _require_space(self, missing: dict[str, RemoteFile]) -> None:
        needed = sum(file.size for file in missing.values())
        if not needed:
            return
        blobs = self.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        partly = sum(p.stat().st_size for f in missing.values() if (p := blobs / f"{f.digest}.incomplete").exists())
        free = shutil.disk_usage(blobs).free
        if needed - partly > free:
            raise ModelError(
                f"model {self.repository!r}: {needed - partly} bytes are still to come and {blobs} has {free} free:"
                " make room, or set HF_HUB_CACHE to another disk"
            )

    def _download(
        self, commit: str, name: str, file: RemoteFile, path: Path, progress: Callable[[str, int, int], None] | None
    ) -> None:
        from filelock import FileLock

        blob = self.folder / "blobs" / file.digest
        part = blob.with_name(f"{file.digest}.incomplete")
        for folder in (blob.parent, path.parent, self.locks):
            folder.mkdir(parents=True, exist_ok=True)

        def report(done: int) -> None:
            if progress is not None:
                progress(f"download {name}", done, file.size)

        # The same lock as the hub's own client: two processes never write one blob.
        with FileLock(self.locks / f"{file.digest}.lock"):
            if blob.is_file():  # of another commit, or by another process
                self._verify(blob, name, file, progress)
            else:
                try:
                    hub_client.download(self.repository, commit, name, file.size, part, report)
                except Unreachable as error:
                    raise ModelError(
                        f"model {self.repository!r}: {error}: run the same command again, it continues"
                    ) from error
                self._verify(part, name, file, progress)
                os.replace(part, blob)
            _link(path, blob)

    def _verify(
        self, path: Path, name: str, file: RemoteFile, progress: Callable[[str, int, int], None] | None
    ) -> None:
        found = digest(path, file, lambda done: progress(f"verify {name}", done, file.size) if progress else None)
        if found != file.digest:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            kind = "SHA-256" if SHA256.fullmatch(file.digest) else "git SHA-1"
            raise ModelError(
                f"model {self.repository!r}: {name} is corrupted: expected {kind} {file.digest}, found {found};"
                " it was removed from the cache: run the same command again to fetch it anew"
            )

    def _save(self, record: Record) -> None:
        files = {name: asdict(file) for name, file in record.listing.files.items()}
        text = json.dumps({"files": files, "verified": record.verified}, indent=1)
        _write(self.records / f"{record.listing.commit}.json", text)


def digest(path: Path, file: RemoteFile, report: Callable[[int], None]) -> str:
    """The hash of `path`, of the kind that `file.digest` is."""
    if SHA256.fullmatch(file.digest):
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
            done += len(chunk)
            report(done)
    return state.hexdigest()


def _from_link(path: Path) -> RemoteFile:
    """A cached file that somebody else downloaded: its blob's name is the hash that the hub stated."""
    name = path.resolve().name
    return RemoteFile(path.stat().st_size, name if is_digest(name) else "")


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _link(path: Path, blob: Path) -> None:
    path.unlink(missing_ok=True)  # a link whose blob was deleted
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:
        return
    except OSError:  # a file system without symbolic links: the file lies in the snapshot itself
        os.replace(blob, path)


def _write(path: Path, text: str) -> None:
    """Atomically: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(name, path)
