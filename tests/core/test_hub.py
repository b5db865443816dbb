"""Models from a folder, a source and the hub. The hub is a local HTTP server with the endpoints that are really used.

huggingface_hub reads its environment on import, so every client is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

from pefttool import hub, model_files
from pefttool.errors import ModelError
from pefttool.interfaces import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
REPOSITORY = "acme/tiny-model"
MIB = 1 << 20


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """A repository served as the hub serves it; knobs make it fail in the ways that networks fail."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT
        self.requests: list[tuple[str, str | None]] = []  # (path, Range header)
        self.corrupt: set[str] = set()
        self.status: int | None = None
        self.error_code = ""
        self.stop_after: int | None = None  # close or hold the connection after so many bytes of a weight file
        self.hold = False
        self.ignore_range = False
        self.redirect = False  # weights lie on another host, as on the real hub
        self.headers: dict[str, dict[str, str]] = {}
        self.release = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        path = unquote(url.path) + (f"?{url.query}" if url.query else "")
        self.requests.append((f"{request.command} {path}", request.headers.get("Range")))
        self.headers[url.path] = dict(request.headers)
        if self.status is not None:
            return self.send(request, self.status, b"", {"X-Error-Code": self.error_code})
        api = re.fullmatch(rf"/api/models/{REPOSITORY}/revision/(.+)\?blobs=true", path, re.IGNORECASE)
        if api is not None and api[1] in ("main", "refs/pr/1", self.commit):
            return self.send(request, 200, json.dumps(self.listing()).encode())
        if api is not None:
            return self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path == "/cdn/model.safetensors":
            return self.send_file(request, "model.safetensors")
        file = re.fullmatch(rf"/{REPOSITORY}/resolve/{self.commit}/(.+)", path)
        if file is None or file[1] not in self.files:
            return self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.redirect and file[1] == "model.safetensors":
            elsewhere = self.url.replace("127.0.0.1", "localhost") + "/cdn/model.safetensors"
            return self.send(request, 302, b"", {"Location": elsewhere})
        return self.send_file(request, file[1])

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if name.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"_id": "1", "id": REPOSITORY, "modelId": REPOSITORY, "sha": self.commit, "siblings": siblings}

    def send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = self.files[name]
        if name in self.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(begin[1]) if begin is not None and not self.ignore_range else 0
        headers = {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": self.commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if self.stop_after is None or not name.endswith(".safetensors"):
            return self.send(request, 206 if start else 200, body, headers)
        self.send(request, 206 if start else 200, body, headers, only=self.stop_after)
        if self.hold:
            self.release.wait(60)
        request.close_connection = True
        return None

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        only: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:only])
            request.wfile.flush()


def safetensors_bytes(folder: Path, **tensors: np.ndarray) -> bytes:
    save_file(tensors, folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    weights = np.random.default_rng(0).standard_normal(MIB * 3 // 4 + 5).astype(np.float32)  # 3 MiB and a bit
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# tiny\n",
        "config.json": b'{"model_type": "bert"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "vocab.txt": b"[PAD]\n",
        "additional_chat_templates/tool.jinja": b"{{ messages }}",
        "modeling.py": b"raise SystemExit('remote code')",
        "model.safetensors": safetensors_bytes(tmp_path, weight=weights),
        "consolidated.safetensors": b"the same weights once more",
        "pytorch_model.bin": b"a pickle",
        "onnx/config.json": b"{}",
    }


@pytest.fixture
def fake(files: dict[str, bytes]) -> Iterator[FakeHub]:
    fake = FakeHub(files)
    yield fake
    fake.close()


CLIENT = """
import json, sys
from types import SimpleNamespace
from pefttool import hub
from pefttool.errors import PefttoolError
reports = []
try:
    found = hub.resolve(sys.argv[1], SimpleNamespace(sources={}), weights=sys.argv[2] == "weights",
                        progress=lambda *report: reports.append(report))
    print(json.dumps({"path": str(found.path), "id": found.id, "revision": found.revision,
                      "notices": found.notices, "reference": found.reference, "reports": reports}))
except PefttoolError as error:
    print(json.dumps({"error": str(error)}))
"""


class Client:
    """Runs `resolve` in a new process with this cache and that hub."""

    def __init__(self, folder: Path, url: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PEFTTOOL_"))}
        self.hf_cache = folder / "hf"
        self.cache = folder / "cache"
        self.environment = {
            **inherited,
            "HF_ENDPOINT": url,
            "HF_HUB_CACHE": str(self.hf_cache),
            "HF_TOKEN_PATH": str(folder / "no-token"),
            "HF_HUB_ETAG_TIMEOUT": "5",
            "PEFTTOOL_CACHE": str(self.cache),
        }
        self.blobs = self.hf_cache / "models--acme--tiny-model" / "blobs"

    def start(self, reference: str = REPOSITORY, what: str = "weights", **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, reference, what],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, reference: str = REPOSITORY, what: str = "weights", **environment: str) -> Any:
        out, err = self.start(reference, what, **environment).communicate(timeout=60)
        assert out, err
        return SimpleNamespace(**{"error": None, **json.loads(out.splitlines()[-1])})


@pytest.fixture
def client(tmp_path: Path, fake: FakeHub) -> Client:
    return Client(tmp_path / "client", fake.url)


API = f"GET /api/models/{REPOSITORY}/revision/main?blobs=true"


def resolved(*names: str) -> list[str]:
    return [f"GET /{REPOSITORY}/resolve/{COMMIT}/{name}" for name in names]


SMALL = ("additional_chat_templates/tool.jinja", "config.json", "tokenizer.json", "vocab.txt")


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


# Folders, sources and malformed references: no client process needed.

NO_SOURCES: Any = SimpleNamespace(sources={})


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, folder / "model.safetensors")
    return folder


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "acme" / "model")
    assert hub.resolve(str(folder), NO_SOURCES, weights=True) == hub.LocalModel(folder, str(folder))
    monkeypatch.chdir(tmp_path)
    found = hub.resolve("acme/model", NO_SOURCES, weights=False)  # a folder goes before the hub
    assert (found.path, found.id, found.reference) == (folder, str(folder), str(folder))


def break_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtype|'))


def long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def shards(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds list, expected a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), "weights found: none"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only as safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1), "promises"),
        (lambda f: os.truncate(f / "model.safetensors", 11), "cut off"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut off"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs..."), "git lfs pull"),
        (break_header, "broken safetensors header"),
        (long_header, "is not a safetensors file"),
        (lambda f: shards(f, {"w": "model-1.safetensors", "v": "model-2.safetensors"}), "lists model-2.safetensors"),
        (lambda f: shards(f, {"w": "model-1.safetensors", "v": "model-1.safetensors"}), "lacks 'v'"),
        (lambda f: shards(f, {"w": "../model-1.safetensors"}), "of the same folder"),
        (lambda f: shards(f, {}), "no `weight_map`"),
    ],
)
def test_broken_folders_are_refused_with_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = write_model(tmp_path / "model")
    spoil(folder)
    for weights in (False, True):
        with pytest.raises(ModelError) as caught:
            hub.resolve(str(folder), NO_SOURCES, weights=weights)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


def test_shards_that_are_all_there_pass(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    shards(folder, {"w": "model-1.safetensors"})
    assert hub.resolve(str(folder), NO_SOURCES, weights=True).path == folder


def test_adapter_folder_points_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it is an adapter"):
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)


@pytest.mark.slow
def test_conversion_command_converts(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, architectures=["BertModel"]
    )
    model = BertModel(config)
    config.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)
    command = str(caught.value).split("give the new folder: ")[1]
    assert command == model_files.conversion_command(str(tmp_path))
    subprocess.run(
        command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True, capture_output=True
    )
    assert hub.resolve(str(tmp_path / "converted"), NO_SOURCES, weights=True).path == tmp_path / "converted"


class Shelf(Source):
    name = "shelf"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, reference: str) -> Path:
        if reference == "broken":
            raise KeyError("two\nlines")
        if reference == "unknown":
            raise ModelError("no such book")
        return self.folder

    def data(self, reference: str) -> Path:
        raise NotImplementedError


class Sources(dict[str, Source]):
    def owner(self, name: str) -> Any:
        return SimpleNamespace(owner="shelf-package 1.0")


def test_sources(tmp_path: Path) -> None:
    registry: Any = SimpleNamespace(sources=Sources(shelf=Shelf(write_model(tmp_path / "model"))))
    assert hub.resolve("shelf:a/b:c", registry, weights=False).reference == "shelf:a/b:c"
    with pytest.raises(ModelError, match="did you mean 'shelf'"):
        hub.resolve("shelv:x", registry, weights=False)
    with pytest.raises(ModelError, match="no such book"):
        hub.resolve("shelf:unknown", registry, weights=False)
    with pytest.raises(ModelError, match=r"source 'shelf' from shelf-package 1.0 failed: KeyError: 'two\\nlines'"):
        hub.resolve("shelf:broken", registry, weights=False)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"'shelf:x'.*has no config.json"):
        hub.resolve("shelf:x", registry, weights=False)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("", "no such folder"),
        ("gpt2", "nor ORG/NAME"),
        ("./missing", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("~/no-such-folder/x", "no such folder"),
        ("a/b/c", "no such folder"),
        (r"C:\models\x", "no such folder"),
        ("C:/models", "not a name on the hub"),
        ("org/name@", "'' is not a revision"),
        ("org/name@../../x", "is not a revision"),
        ("org/na--me", "not a name on the hub"),
        ("org/name with spaces", "not a name on the hub"),
        ("org/" + "x" * 5000, "not a name on the hub"),
    ],
)
def test_malformed_references_are_one_line(reference: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        hub.resolve(reference, NO_SOURCES, weights=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a file: give the folder"):
        hub.resolve(str(tmp_path / "model.gguf"), NO_SOURCES, weights=True)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PEFTTOOL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert hub.cache_folder() == tmp_path / ".cache" / "pefttool"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache_folder() == tmp_path / "xdg" / "pefttool"
    monkeypatch.setenv("PEFTTOOL_CACHE", "~/own")
    assert hub.cache_folder() == tmp_path / "own"


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, pefttool.hub; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"
