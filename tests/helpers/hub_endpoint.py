"""A small Hub on this machine: as much of its HTTP API as huggingface_hub asks for when it pushes and loads models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import transformers.utils.hub
import yaml
from huggingface_hub import ModelCard, constants

WRITER, READER, OUTSIDER = "hf_writer", "hf_reader", "hf_outsider"
TOKENS = {WRITER: ("ada", "write", ["lab"]), READER: ("ada", "read", ["lab"]), OUTSIDER: ("eve", "write", [])}
REPO_ID = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]{0,94}[\w-])?/)?[A-Za-z0-9_](?:[\w.-]{0,94}[\w-])?", re.A)


@dataclass
class Repo:
    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # id, message, all files

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    @property
    def messages(self) -> list[str]:
        return [message for _, message, _ in self.commits]


class Hub:
    """`with Hub() as hub:` serves at `hub.url`; `hub.fail(pattern, status)` makes requests that match fail."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by digest
        self.requests: list[str] = []
        self.failures: list[tuple[str, int, str]] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, status: int, message: str = "made to fail") -> None:
        self.failures.append((pattern, status, message))

    def commit(self, name: str, files: dict[str, bytes], message: str) -> str:
        repo = self.repos[name]
        oid = hashlib.sha1(f"{name} {len(repo.commits)} {message}".encode()).hexdigest()
        repo.commits.append((oid, message, files))
        return oid


def hub_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub to which the clients of this process talk; a fixture yields from it."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # a shared client that remembers its endpoint
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


class _Error(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body: object):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt", ".npy", ".pth"))


def card_errors(content: str) -> list[str]:
    """What the Hub has against the metadata of a card; rules of its documentation."""
    try:
        data = ModelCard(content).data.to_dict()  # refuses a model-index without its keys
    except (ValueError, yaml.YAMLError) as error:
        return [str(error)]
    ids = [
        name
        for key in ("base_model", "datasets")
        for name in ([data[key]] if isinstance(data.get(key), str) else data.get(key) or [])
    ]
    errors = [f"{name!r} is not valid. Use an id from https://hf.co." for name in ids if not REPO_ID.fullmatch(str(name))]
    texts = [*(data.get("tags") or ()), data.get("library_name", ""), data.get("pipeline_tag", "")]
    return errors + [f"{text!r} must be a string" for text in texts if not isinstance(text, str)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.content = self._read_chunks()
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
        try:
            for pattern, status, message in self.hub.failures:
                if re.search(pattern, request):
                    raise _Error(status, message)
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    method(self, *match.groups())
                    return
            raise _Error(404, f"no such page: {request}")
        except _Error as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self._send_json({"error": error.message, **error.body}, error.status, headers)

    def _read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    @property
    def _json(self) -> dict:
        return json.loads(self.content)

    def _who(self, must: bool = True) -> tuple[str, str, list[str]]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in TOKENS:
            return TOKENS[token]
        if must or token:
            raise _Error(401, "Invalid credentials in Authorization header")
        return "", "", []

    def _must_write(self, namespace: str) -> None:
        name, role, orgs = self._who()
        if role != "write" or namespace not in (name, *orgs):
            raise _Error(403, f"Forbidden: you don't have the rights to write to {namespace}")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        user, _, orgs = self._who(must=False)
        if repo is None or (repo.private and name.split("/")[0] not in (user, *orgs)):
            raise _Error(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        for oid, _, files in reversed(repo.commits):
            if revision in ("main", "HEAD", oid):
                return oid, files
        raise _Error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # The pages.

    def create(self) -> None:
        asked = self._json
        namespace = asked.get("organization") or self._who()[0]
        self._must_write(namespace)
        name = f"{namespace}/{asked['name']}"
        if not REPO_ID.fullmatch(name) or "--" in name:
            raise _Error(400, f"Invalid repo name: {name}")
        if name in self.hub.repos:
            raise _Error(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._send_json({"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self) -> None:
        errors = card_errors(self._json["content"])
        if errors:
            raise _Error(400, "Invalid metadata", errors=[{"message": text} for text in errors], warnings=[])
        self._send_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        _, files = self._at(name, revision)
        self._must_write(name.split("/")[0])
        answers = []
        for file in self._json["files"]:
            path = file["path"]
            old = files.get(path)
            oid = old if old is None else hashlib.sha256(old).hexdigest() if is_lfs(path) else git_oid(old)
            answers.append({"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False, "oid": oid})
        self._send_json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self._repo(name)
        self._must_write(name.split("/")[0])
        answers = []
        for item in self._json["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise _Error(400, "the content has another digest")
        self.hub.objects[oid] = self.content
        self._send(b"")

    def commit(self, name: str, revision: str) -> None:
        _, old = self._at(name, revision)
        self._must_write(name.split("/")[0])
        files, message = dict(old), ""
        for line in self.content.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Error(400, f"unknown operation {key}")
        if errors := card_errors(files.get("README.md", b"").decode()):
            raise _Error(400, "; ".join(errors))
        oid = self.hub.commit(name, files, message)
        self._send_json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, name: str, revision: str | None) -> None:
        oid, files = self._at(name, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.hub.repos[name].private
        self._send_json({"id": name, "modelId": name, "sha": oid, "private": private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str, folder: str | None) -> None:
        _, files = self._at(name, revision)
        under = f"{folder}/" if folder else ""
        if folder and not any(path.startswith(under) for path in files):
            raise _Error(404, f"{folder} does not exist", "EntryNotFound")
        entries = []
        for path, content in sorted(files.items()):
            if path.startswith(under):
                entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                if is_lfs(path):
                    entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                entries.append(entry)
        self._send_json(entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        oid, files = self._at(name, revision)
        if path not in files:
            raise _Error(404, f"{path} does not exist", "EntryNotFound")
        content = files[path]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)
        self._send(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"})


_NAME = r"([^/ ]+/[^/ ]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", _Handler.lfs_put),
    (rf"POST /api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.*))?", _Handler.tree),
    (rf"GET /api/models/{_NAME}(?:/revision/([^/]+))?", _Handler.info),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
