"""`--model` -> a folder on disk: an existing one, SOURCE:REFERENCE of a plugin, or ORG/NAME[@REVISION] on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pefttool.api.errors import ModelError, PefttoolError, suggest
from pefttool.config.registry import Registry
from pefttool.files import model_folder
from pefttool.files.cache_folder import cache_folder
from pefttool.models import hub_client, hub_store
from pefttool.models.hub_client import Unreachable
from pefttool.models.hub_store import Record

#: Called with (what, done, total) in bytes while something is fetched or checked.
ProgressReport = Callable[[str, int, int], None]
HUB_REFERENCE = re.compile(r"[^/@]+/[^/@]+(@.*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)[\w.][\w.\-/+]*", re.ASCII)
SOURCE = re.compile(r"(?P<source>[A-Za-z0-9_\-]{2,}):(?P<reference>.+)")

#: Who has the models that the hub once held without an owner, by how their names begin.
OWNERS = (
    ("bert-", "google-bert"),
    ("distilbert-", "distilbert"),
    ("distilroberta-", "distilbert"),
    ("distilgpt2", "distilbert"),
    ("roberta-", "FacebookAI"),
    ("xlm-roberta-", "FacebookAI"),
    ("albert-", "albert"),
    ("gpt2", "openai-community"),
    ("t5-", "google-t5"),
    ("xlnet-", "xlnet"),
)


@dataclass(frozen=True)
class LocalModel:
    """A model on disk. `id` finds it again (a folder's is absolute, the hub's has no revision).

    `revision` is the hub's commit (40 hex digits), or None; `notices` are lines that the user should read.
    """

    path: Path
    id: str
    revision: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """What `resolve` takes to give exactly this model again, whatever its branch holds by then."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def resolve(
    reference: str,
    registry: Registry,
    *,
    weights: bool,
    progress: ProgressReport | None = None,
    config_is_enough: bool = False,
    code: bool = False,
) -> LocalModel:
    """The folder of the model called `reference`, fetched if need be.

    With `weights=False` nothing but configs and tokenizers is fetched from the hub, so that a run can be checked
    before gigabytes are; with `code` the Python files of its top folder, too. Every file from the hub is compared with
    the hash that the hub states. A folder must hold weights too, unless its `config_is_enough` (to plan). Raises
    ModelError.
    """
    path = os.path.abspath(os.path.expanduser(reference)) if reference else ""
    if os.path.isdir(path):
        model_folder.check_folder(Path(path), repr(reference), weights=not config_is_enough)
        return LocalModel(Path(path), path)
    if os.path.exists(path):
        raise ModelError(f"model {reference!r} is a file: give the folder with its config.json and safetensors")
    source = SOURCE.fullmatch(reference)
    if source is not None:
        return _from_source(source["source"], source["reference"], registry)
    if HUB_REFERENCE.fullmatch(reference) and not reference.startswith((".", "~", os.sep)):
        repository, _, revision = reference.partition("@")
        if "@" in reference and not REVISION.fullmatch(revision):
            raise ModelError(f"model {reference!r}: {revision!r} is not a revision: give a branch, a tag or a commit")
        try:
            return _from_hub(hub_client.valid_id(repository), revision or "main", weights, progress, code)
        except OSError as error:
            raise ModelError(f"model {reference!r} cannot be cached: {error}; set HF_HUB_CACHE elsewhere") from error
    owner = next((owner for begins, owner in OWNERS if reference.startswith(begins)), None)
    if owner is not None:
        way_out = f"on the hub it is {owner}/{reference}: use that"
        raise ModelError(f"model {reference!r}: no such folder, and its name lacks an owner; {way_out}")
    raise ModelError(
        f"model {reference!r}: no such folder, and neither SOURCE:REFERENCE"
        f" (sources: {', '.join(registry.sources) or 'none'}) nor ORG/NAME[@REVISION] on the hub: give one of these"
    )


def _from_source(name: str, reference: str, registry: Registry) -> LocalModel:
    given = f"{name}:{reference}"
    if name not in registry.sources:
        raise ModelError(f"model {given!r}: no source is called {name!r}: {suggest(name, registry.sources)}")
    try:
        folder = Path(registry.sources[name].model(reference))
    except PefttoolError:
        raise
    except Exception as error:  # a stranger's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        owner = registry.sources.owner(name).owner
        raise ModelError(f"model {given!r}: source {name!r} from {owner} failed: {reason}") from error
    model_folder.check_folder(folder, repr(given))
    return LocalModel(folder, given)


def _from_hub(repository: str, revision: str, weights: bool, progress: ProgressReport | None, code: bool) -> LocalModel:
    store = hub_store.HubStore(repository, cache_folder() / "hub")
    record, notices = _record(store, revision)
    files = record.listing.files
    if record.listing.complete:
        if model_folder.CONFIG not in files:
            raise ModelError(f"model {repository!r} has no {model_folder.CONFIG}: give a base model")
        model_folder.require_safetensors(files, repr(repository), repository)
    small = {model_folder.CONFIG, *(name for name in files if model_folder.is_small(name, code))}
    folder = store.fetch(record, sorted(small), progress)
    if weights:
        store.fetch(record, _weight_files(folder, record, repository), progress)
        model_folder.check_folder(folder, repr(repository))
    store.remember(revision, record.listing.commit, replace=weights)
    if record.unverified:
        notices = (*notices, f"{repository}: {record.unverified} cached files state no hash and could not be verified")
    return LocalModel(folder, repository, record.listing.commit, notices)


def _record(store: hub_store.HubStore, revision: str) -> tuple[Record, tuple[str, ...]]:
    """What is in the repository at `revision`. A known commit never changes, so it needs no request."""
    known = store.load(revision) if COMMIT.fullmatch(revision) else None
    if known is not None:
        return known, ()
    try:
        listing = hub_client.list_files(store.repository, revision)
    except Unreachable as error:
        record = store.cached(revision, str(error))
        return record, (f"{error}: using {store.repository} at {record.listing.commit[:12]} from the cache",)
    return store.load(listing.commit) or Record(listing), ()


def _weight_files(folder: Path, record: Record, repository: str) -> list[str]:
    """Exactly the files that transformers loads: other safetensors may be the same weights once more."""
    if model_folder.SINGLE in record.listing.files or model_folder.INDEX not in record.listing.files:
        return [model_folder.SINGLE]
    shards = sorted(model_folder.read_index(folder / model_folder.INDEX, repr(repository)))
    absent = [shard for shard in shards if shard not in record.listing.files]
    if absent and record.listing.complete:
        raise ModelError(f"model {repository!r} has no {absent[0]}, which its {model_folder.INDEX} lists: give another")
    return shards
