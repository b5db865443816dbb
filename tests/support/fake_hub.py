"""A hub for tests: a local HTTP server with the endpoints that are really used, and a client in a process of its own.

huggingface_hub reads its environment on import, hence the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

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
from pefttool.models import hub
from pefttool.api.errors import PefttoolError
reports = []
try:
    found = hub.resolve(sys.argv[1], SimpleNamespace(sources={}), weights=sys.argv[2] == "weights",
                        code=sys.argv[2] == "code", progress=lambda *report: reports.append(report))
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
