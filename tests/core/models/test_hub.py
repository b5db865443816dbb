"""Models from the hub: pinned, continued, verified, and offline the second time."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_hub import (
    API,
    COMMIT,
    MIB,
    NEXT_COMMIT,
    REPOSITORY,
    SMALL,
    Client,
    FakeHub,
    client,
    fake,
    files,
    git_sha1,
    resolved,
    safetensors_bytes,
)


def test_only_configs_are_fetched_for_the_checks_then_only_the_weights(client: Client, fake: FakeHub) -> None:
    found = client.run(what="configs")
    assert found.error is None
    # Nothing else is asked for: no telemetry, no code, no pickle, no weights.
    assert fake.paths == [API, *resolved(*SMALL)]
    fake.requests.clear()
    found = client.run(found.reference)
    assert fake.paths == resolved("model.safetensors"), "the pinned commit needs no listing again"
    folder = Path(found.path)
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {*SMALL, "model.safetensors"}
    for name in names:
        assert (folder / name).read_bytes() == fake.files[name]


def test_commit_is_pinned_and_progress_is_reported(client: Client, fake: FakeHub) -> None:
    found = client.run()
    assert (found.id, found.revision, found.notices) == (REPOSITORY, COMMIT, [])
    assert found.reference == f"{REPOSITORY}@{COMMIT}"
    size = len(fake.files["model.safetensors"])
    for what in ("download model.safetensors", "verify model.safetensors"):
        done = [done for w, done, total in found.reports if w == what and total == size]
        assert done == sorted(done)
        assert done[-1] == size
        assert len(done) >= 3, "a large file is reported more than once"


def test_transformers_finds_the_download_in_its_own_cache(client: Client, fake: FakeHub) -> None:
    found = client.run()
    code = (
        "from huggingface_hub import snapshot_download, try_to_load_from_cache as t;"
        f"print(t('{REPOSITORY}', 'model.safetensors', revision='main'));"
        f"print(t('{REPOSITORY}', 'config.json', revision='{COMMIT}'))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env=client.environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert out == [f"{found.path}/model.safetensors", f"{found.path}/config.json"]


def test_killed_download_continues_in_the_next_process(client: Client, fake: FakeHub) -> None:
    fake.stop_after, fake.hold = MIB + 512 * 1024, True
    content = fake.files["model.safetensors"]
    part = client.blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    process = client.start()
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= MIB):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    arrived = part.stat().st_size
    assert MIB <= arrived < len(content)
    assert part.read_bytes() == content[:arrived]

    fake.requests.clear()
    fake.stop_after = None
    found = client.run()
    assert found.error is None
    assert (resolved("model.safetensors")[0], f"bytes={arrived}-") in fake.requests
    assert (Path(found.path) / "model.safetensors").read_bytes() == content
    assert not part.exists()
    assert fake.paths.count(resolved("config.json")[0]) == 0, "what was complete is not fetched again"


def test_dropped_connection_continues_within_one_run(client: Client, fake: FakeHub) -> None:
    fake.stop_after = MIB + 7
    found = client.run()
    assert found.error is None
    ranges = [r for path, r in fake.requests if path == resolved("model.safetensors")[0]]
    assert ranges[0] is None
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in ranges[1:]]
    assert len(starts) >= 2
    assert starts == sorted(set(starts)), "every attempt starts where the last one stopped"
    assert (Path(found.path) / "model.safetensors").read_bytes() == fake.files["model.safetensors"]


def test_server_that_ignores_ranges_gives_the_file_from_its_beginning(client: Client, fake: FakeHub) -> None:
    content = fake.files["model.safetensors"]
    client.blobs.mkdir(parents=True)
    (client.blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").write_bytes(content[:1000])
    fake.ignore_range = True
    found = client.run()
    assert found.error is None
    assert (Path(found.path) / "model.safetensors").read_bytes() == content


def test_download_that_stays_broken_is_one_line_and_keeps_what_came(client: Client, fake: FakeHub) -> None:
    fake.stop_after = 0
    found = client.run()
    size = len(fake.files["model.safetensors"])
    assert f"model.safetensors: 0 of {size} bytes have arrived" in found.error
    assert "run the same command again, it continues" in found.error
    assert "\n" not in found.error
    fake.stop_after = None
    assert client.run().error is None


def test_weights_on_another_host_are_continued_and_never_see_the_token(client: Client, fake: FakeHub) -> None:
    fake.redirect = True
    fake.stop_after = 2 * MIB
    found = client.run(HF_TOKEN="hf_secret")
    assert (Path(found.path) / "model.safetensors").read_bytes() == fake.files["model.safetensors"]
    assert ("GET /cdn/model.safetensors", f"bytes={2 * MIB}-") in fake.requests
    for path, headers in fake.headers.items():
        expected = None if path.startswith("/cdn") else "Bearer hf_secret"
        assert headers.get("Authorization") == expected, path
        assert re.fullmatch(r"pefttool/[\d.]+", headers["User-Agent"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_corrupted_download_is_refused_and_forgotten(client: Client, fake: FakeHub, name: str) -> None:
    fake.corrupt.add(name)
    content = fake.files[name]
    bad = content[:-1] + bytes([content[-1] ^ 1])
    hashed = (lambda b: hashlib.sha256(b).hexdigest()) if name.endswith(".safetensors") else git_sha1
    error = client.run().error
    for part in (REPOSITORY, name, "corrupted", hashed(content), hashed(bad), "run the same command again"):
        assert part in error
    assert "\n" not in error
    assert not any(hashed(content) in p.name for p in client.blobs.iterdir())
    fake.corrupt.clear()
    assert client.run().error is None


def test_file_that_changed_in_the_cache_is_found_and_fetched_anew(client: Client, fake: FakeHub) -> None:
    weights = Path(client.run().path) / "model.safetensors"
    content = fake.files["model.safetensors"]
    weights.resolve().write_bytes(content[:-1] + b"x")
    error = client.run().error
    assert "model.safetensors is corrupted" in error
    assert not weights.exists()
    assert client.run().error is None
    assert weights.read_bytes() == content


def test_second_run_offline(client: Client, fake: FakeHub) -> None:
    first = client.run()
    fake.requests.clear()
    offline = client.run(HF_HUB_OFFLINE="1")
    assert (offline.path, offline.revision) == (first.path, COMMIT)
    assert len(offline.notices) == 1
    assert "HF_HUB_OFFLINE" in offline.notices[0] and COMMIT[:12] in offline.notices[0]
    pinned = client.run(f"{REPOSITORY}@{COMMIT}")
    assert (pinned.path, pinned.notices) == (first.path, [])
    assert fake.requests == []
    assert not any(what.startswith("verify") for what, _, _ in offline.reports + pinned.reports), "no second hashing"


def test_hub_that_cannot_be_reached_or_is_down(client: Client, fake: FakeHub) -> None:
    first = client.run()
    fake.status = 503
    down = client.run()
    assert (down.path, down.revision) == (first.path, COMMIT)
    assert "status 503" in down.notices[0]
    closed = client.run(HF_ENDPOINT="http://127.0.0.1:9")
    assert (closed.path, closed.revision) == (first.path, COMMIT)
    assert "http://127.0.0.1:9 cannot be reached" in closed.notices[0]


def test_nothing_cached_and_offline_says_so(client: Client, fake: FakeHub) -> None:
    error = client.run(HF_HUB_OFFLINE="1").error
    assert "is not in the cache, and HF_HUB_OFFLINE is set" in error
    client.run(what="configs")
    error = client.run(HF_HUB_OFFLINE="1").error
    assert "HF_HUB_OFFLINE is set: run the same command again" in error
    assert "\n" not in error


def test_branch_moves_but_a_configs_only_look_keeps_the_commit_whose_weights_are_here(
    client: Client, fake: FakeHub
) -> None:
    client.run()
    fake.commit = NEXT_COMMIT
    assert client.run(what="configs").revision == NEXT_COMMIT
    assert client.run(HF_HUB_OFFLINE="1").revision == COMMIT
    assert client.run().revision == NEXT_COMMIT
    assert client.run(HF_HUB_OFFLINE="1").revision == NEXT_COMMIT
    downloads = [p for p in fake.paths if p.endswith("/model.safetensors")]
    assert len(downloads) == 1, "the same bytes at another commit are not fetched again"


def test_cache_of_another_tool_is_used_and_verified(client: Client, fake: FakeHub) -> None:
    client.run()
    shutil.rmtree(client.cache)  # pefttool's records; the hub's cache stays
    offline = client.run(HF_HUB_OFFLINE="1")
    assert offline.error is None
    assert sorted({w for w, _, _ in offline.reports if "safetensors" in w}) == ["verify model.safetensors"]
    weights = Path(offline.path) / "model.safetensors"
    weights.resolve().write_bytes(fake.files["model.safetensors"][:-1] + b"x")
    assert "corrupted" in client.run(HF_HUB_OFFLINE="1").error
    assert "model.safetensors is not in the cache" in client.run(HF_HUB_OFFLINE="1").error


def test_sharded_weights(client: Client, fake: FakeHub, tmp_path: Path) -> None:
    del fake.files["model.safetensors"]
    fake.files["model-00001-of-00002.safetensors"] = safetensors_bytes(tmp_path, a=np.ones(3, np.float32))
    fake.files["model-00002-of-00002.safetensors"] = safetensors_bytes(tmp_path, b=np.ones((2, 5), np.float16))
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    fake.files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    found = client.run()
    assert found.error is None
    assert {p.name for p in Path(found.path).glob("*.safetensors")} == set(weight_map.values())
    del fake.files["model-00002-of-00002.safetensors"]
    fake.commit = NEXT_COMMIT
    assert "has no model-00002-of-00002.safetensors" in client.run().error


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", ["no such folder", "no such repository", "HF_TOKEN"]),
        (401, "", ["no such repository or keeps it private", "HF_TOKEN"]),
        (403, "GatedRepo", ["gated", f"/{REPOSITORY}", "HF_TOKEN"]),
        (401, "GatedRepo", ["gated", "accept its terms"]),
        (403, "", ["refuses access", "HF_TOKEN"]),
        (404, "RevisionNotFound", ["no revision 'main'", "a branch, a tag or a commit"]),
        (500, "", ["is not in the cache", "status 500"]),
        (418, "", ["answers with status 418"]),
    ],
)
def test_refusals_are_one_line(client: Client, fake: FakeHub, status: int, code: str, words: list[str]) -> None:
    fake.status, fake.error_code = status, code
    error = client.run().error
    for word in words:
        assert word in error
    assert "\n" not in error


def test_unknown_revision(client: Client, fake: FakeHub) -> None:
    assert "has no revision 'v9'" in client.run(f"{REPOSITORY}@v9").error
    assert client.run(f"{REPOSITORY}@refs/pr/1", "configs").revision == COMMIT


def test_repository_without_safetensors_is_refused_before_any_download(client: Client, fake: FakeHub) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        del fake.files[name]
    error = client.run(what="configs").error
    assert "only as safetensors, found pytorch_model.bin" in error
    assert 'python -c "import transformers' in error
    assert fake.paths == [API]


def test_hub_that_states_no_hash_is_refused(client: Client, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"_id": "1", "id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": n} for n in fake.files]}
    monkeypatch.setattr(fake, "listing", lambda: plain)
    assert "states no hash" in client.run().error
