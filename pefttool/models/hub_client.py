"""The hub over HTTP: what a repository holds at a commit, and one file, continued where an earlier attempt stopped.

Of huggingface_hub this uses the session (proxies, offline mode), the token and the errors, but neither its downloads
nor its headers: `hf_hub_download` writes to a file whose name is new in every process and deletes it on failure, so
a killed download of gigabytes starts again at zero, and compares no hashes; `build_hf_headers` sends a request of its
own, for telemetry.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pefttool.api.errors import ModelError
from pefttool.config.validation import short

CHUNK = 1 << 20
#: Attempts in a row that may bring nothing before a download is given up.
ATTEMPTS = 5
SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Unreachable(Exception):
    """The hub gave no answer that can be used; the cache may help. The message is the reason, in a few words."""


@dataclass(frozen=True)
class RemoteFile:
    """`digest` is the SHA-256 of a large file, or git's SHA-1 of a small one; "" if nobody has stated it."""

    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit; not `complete` if it was read off a cache."""

    commit: str
    files: dict[str, RemoteFile] = field(default_factory=dict)
    complete: bool = True


def valid_id(repository: str) -> str:
    """`repository` if it can be the name of one, else ModelError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        shown = f"model {short(repository)} is not a name on the hub"
        raise ModelError(f"{shown} ({one_line(error)[:200]}): give ORG/NAME, or a folder") from error
    return repository


def list_files(repository: str, revision: str) -> Listing:
    """Ask the hub, in one request, what `repository` holds at `revision`. Raises ModelError or Unreachable."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of whichever HTTP library the client uses
    endpoint = constants.ENDPOINT
    url = f"{endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        response = get_session().get(url, headers=_headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hf_raise_for_status(response)
        answer = response.json()
        files = {str(f["rfilename"]): _remote(f) for f in answer["siblings"]}
        commit = str(answer["sha"])
    except OfflineModeIsEnabled as error:
        raise Unreachable("HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        raise _refusal(error, repository, revision, endpoint) from error
    except transport_error as error:
        raise Unreachable(f"{endpoint} cannot be reached ({type(error).__name__}: {one_line(error)})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreachable(f"{endpoint} does not answer as a hub ({type(error).__name__}: {one_line(error)})") from error
    if not SHA1.fullmatch(commit):
        raise Unreachable(f"{endpoint} does not answer as a hub (commit {commit!r})")
    return Listing(commit, files)


def _headers() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"User-Agent": f"pefttool/{version('pefttool')}"}
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


def _remote(entry: Mapping[str, Any]) -> RemoteFile:
    digest = str(entry["lfs"]["sha256"] if entry.get("lfs") else entry.get("blobId"))
    return RemoteFile(int(entry.get("size") or 0), digest if is_digest(digest) else "")


def is_digest(text: str) -> bool:
    return bool(SHA1.fullmatch(text) or SHA256.fullmatch(text))


def _refusal(error: Exception, repository: str, revision: str, endpoint: str) -> Exception:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    log_in = "`hf auth login`, or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        page = f"{endpoint}/{repository}"
        return ModelError(f"model {repository!r} is gated: accept its terms at {page}, then log in: {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"model {repository!r} has no revision {revision!r}: give a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return ModelError(
            f"model {repository!r}: there is no such folder, and {endpoint} has no such repository or keeps it private:"
            f" check the name, or log in: {log_in}"
        )
    if status == 403:
        return ModelError(f"model {repository!r}: {endpoint} refuses access: log in: {log_in}")
    if status == 429 or status >= 500:
        return Unreachable(f"{endpoint} answers with status {status}")
    return ModelError(f"model {repository!r}: {endpoint} answers with status {status}: {one_line(error)}")


def download(repository: str, commit: str, name: str, size: int, part: Path, report: Callable[[int], None]) -> None:
    """Append the rest of file `name` to `part`, with a Range request if `part` holds bytes already.

    Plain HTTP, also where the hub offers its chunk store: only a plain response can be continued after a kill.
    Raises Unreachable when the connection stays broken; what has arrived stays in `part`.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]
    url = hf_hub_url(repository, name, revision=commit)
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before == size and part.exists():
            return
        if before > size:
            part.unlink()
            before = 0
        try:
            _append(url, part, before, report)
        except OfflineModeIsEnabled as error:
            raise Unreachable("HF_HUB_OFFLINE is set") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise ModelError(f"model {repository!r}: {name} cannot be downloaded: {one_line(error)}") from error
            reason = f"the server answers with status {status}"
        except transport_error as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
        else:
            reason = "the server sent a different number of bytes than it had announced"
        arrived = part.stat().st_size if part.exists() else 0
        idle = 0 if before < arrived <= size else idle + 1
        if arrived != size and idle >= ATTEMPTS:
            raise Unreachable(f"{name}: {arrived} of {size} bytes have arrived, then the download stopped ({reason})")
        if arrived != size:
            time.sleep(min(idle, 1))


def _append(url: str, part: Path, have: int, report: Callable[[int], None]) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    # A compressed answer could not be continued: its offsets are not the file's.
    headers = {**_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        if have and response.status_code != 206:
            have = 0  # the server ignored the range and sends the file from its beginning
        with part.open("ab" if have else "wb") as stream:
            report(have)
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                have += len(chunk)
                report(have)


def one_line(error: BaseException) -> str:
    """The first line of an error that says something: the hub's client puts links and advice after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
