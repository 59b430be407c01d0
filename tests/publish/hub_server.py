"""A Hub on this machine for tests, on which real clients push and pull.

Repositories are bare git repositories, served to git as well; large files lie beside them by their
hash, as LFS has them, or in the store of chunks that hf_xet itself keeps on disk ("local" CAS).
What the Hub of the internet does beyond that (quotas, spaces, web pages) it does not know.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

OWNER, READER, READ_ONLY = "hf_owner", "hf_reader", "hf_read_only"
"""Tokens: of the account `lab`, of the account `guest`, and of `lab` for reading alone."""
ACCOUNTS = {OWNER: ("lab", "write"), READER: ("guest", "write"), READ_ONLY: ("lab", "read")}
MAIN = "refs/heads/main"
LARGE = (".safetensors", ".npy", ".npz", ".onnx", ".pt", ".zip", ".png", ".tif")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
_POINTER_LIMIT = 200
_PART = 5_000_000
_IDENTITY = "hub <hub@example.org>"


def pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def run_git(folder: Path, *arguments: str, content: bytes = b"", check: bool = True) -> bytes:
    done = subprocess.run(
        ["git", "--git-dir", folder, *arguments], input=content, capture_output=True, check=check
    )
    return done.stdout


@dataclass(frozen=True)
class Entry:
    """A file at one commit."""

    oid: str
    """That git gives to what it stores: the content, or the pointer of a large file."""
    stored: bytes

    @property
    def large(self) -> tuple[str, int] | None:
        """Hash and size of a large file."""
        found = _POINTER.fullmatch(self.stored)
        return (found[1].decode(), int(found[2])) if found else None

    @property
    def size(self) -> int:
        return self.large[1] if self.large else len(self.stored)


class Repository:
    """A bare git repository, and who may see it."""

    def __init__(self, folder: Path, store: "Store", *, private: bool = False) -> None:
        self.folder, self.store = folder, store
        self.private, self.gated = private, False
        self._trees: dict[str, dict[str, Entry]] = {}
        folder.mkdir(parents=True)
        run_git(folder, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")

    @property
    def refs(self) -> dict[str, str]:
        """Commits by the full names of branches, tags and pull requests."""
        refs = self.folder / "refs"
        files = sorted(path for path in refs.rglob("*") if path.is_file())
        return {
            f"refs/{path.relative_to(refs).as_posix()}": path.read_text().strip() for path in files
        }

    def set_ref(self, ref: str, commit: str) -> None:
        run_git(self.folder, "update-ref", ref, commit)

    def history(self) -> list[str]:
        """Return every commit that a ref leads to."""
        return run_git(self.folder, "rev-list", "--all").decode().split()

    def resolve(self, revision: str) -> str | None:
        refs = self.refs
        revision = "main" if revision == "HEAD" else revision
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        found = next((refs[name] for name in names if name in refs), None)
        is_commit = re.fullmatch("[0-9a-f]{40}", revision) and revision in self.history()
        return found or (revision if is_commit else None)

    def tree(self, commit: str) -> dict[str, Entry]:
        """Return the files of a commit by their paths."""
        if commit not in self._trees:
            listed = run_git(self.folder, "ls-tree", "-r", "-z", commit).decode().split("\0")[:-1]
            oids = {line.partition("\t")[2]: line.split()[2] for line in listed}
            contents = self._blobs(list(oids.values()))
            self._trees[commit] = {
                path: Entry(oid, content)
                for (path, oid), content in zip(oids.items(), contents, strict=True)
            }
        return self._trees[commit]

    def _blobs(self, oids: list[str]) -> Iterator[bytes]:
        answer = run_git(
            self.folder, "cat-file", "--batch", content="".join(f"{o}\n" for o in oids).encode()
        )
        position = 0
        for _ in oids:
            end = answer.index(b"\n", position)
            size = int(answer[position:end].split()[2])
            yield answer[end + 1 : end + 1 + size]
            position = end + size + 2

    def files(self, commit: str) -> dict[str, bytes]:
        """Return the contents of a commit, those of large files too."""
        return {
            path: self.store.path(*entry.large).read_bytes() if entry.large else entry.stored
            for path, entry in self.tree(commit).items()
        }

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        """Commit these files and no others."""
        stored = {
            path: pointer(self.store.add(content), len(content))
            if path.endswith(LARGE)
            else content
            for path, content in files.items()
        }
        gone = dict.fromkeys(self.tree(self.refs[ref]) if ref in self.refs else ())
        return self.change(ref, gone | stored, parent=self.refs.get(ref))

    def change(
        self, ref: str, stored: dict[str, bytes | None], *, parent: str | None, title: str = "test"
    ) -> str:
        """Commit what git is to store of some files; None deletes a file."""
        lines = [b"commit %s\n" % ref.encode()]
        lines.append(f"committer {_IDENTITY} {int(time.time())} +0000\n".encode())
        lines.append(b"data %d\n%s\n" % (len(title.encode()), title.encode()))
        if parent:
            lines.append(f"from {parent}\n".encode())
        for path, content in stored.items():
            name = json.dumps(path, ensure_ascii=False).encode()
            if content is None:
                lines.append(b"D %s\n" % name)
            else:
                lines.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name, len(content), content))
        run_git(self.folder, "fast-import", "--quiet", "--force", content=b"".join(lines))
        return self.refs[ref]


class Store:
    """Large files by their hash."""

    def __init__(self, folder: Path) -> None:
        self.lfs, self.cas = folder / "lfs", folder / "cas"
        for place in (self.lfs, self.cas):
            place.mkdir(parents=True)
        self._xet: dict[str, str] = {}
        self._read: set[Path] = set()

    def add(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        (self.lfs / oid).write_bytes(content)
        return oid

    def holds(self, oid: str) -> bool:
        return (self.lfs / oid).is_file() or self.xet_hash(oid) is not None

    def path(self, oid: str, size: int) -> Path:
        """Return the file, put together of its chunks where it came as such."""
        path = self.lfs / oid
        if not path.is_file():
            import hf_xet

            session = hf_xet.XetSession()
            with session.new_file_download_group(endpoint=f"local://{self.cas}") as group:
                group.start_download_file(hf_xet.XetFileInfo(self.xet_hash(oid), size), str(path))
        return path

    def xet_hash(self, oid: str) -> str | None:
        """Return the hash under which hf_xet knows the file, if it came that way."""
        for shard in set(self.cas.rglob("*.mdb")) - self._read if oid not in self._xet else ():
            self._xet |= dict(_shard_entries(shard.read_bytes()))
            self._read.add(shard)
        return self._xet.get(oid)


def _shard_entries(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the SHA-256 hash and the xet hash of the files in one of hf_xet's shards."""
    position = 48
    while content[position : position + 32] not in (b"", b"\xff" * 32):
        name = content[position : position + 32]
        flags, count = struct.unpack_from("<II", content, position + 32)
        position += 48 * (1 + count) + (48 * count if flags >> 31 else 0)
        if flags >> 30 & 1:
            yield _printed(content[position : position + 32]), _printed(name)
            position += 48


def _printed(digest: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "refused") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Request-Id": "test"}
        if status == 401:
            headers["WWW-Authenticate"] = "Basic"
        self.response = JSONResponse({"error": message}, status, headers=headers)


class Hub:
    """The server, and what a test wants to see and to change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder)
        self.repositories: dict[str, Repository] = {}
        self.calls: list[str] = []
        """Method and path of every request."""
        self.uploaded: list[str] = []
        """Hashes of large files that were sent, without those that came in chunks."""
        self.sent = self.received = 0
        """Bytes of large files."""
        self.tampered: dict[str, bytes] = {}
        """What is sent for the name of a file instead of its content."""
        self.cut: dict[str, int] = {}
        """Names of large files whose next download ends after so many bytes."""
        self.url = ""
        self._held: dict[str, threading.Event] = {}
        self._released = threading.Event()

    def hold(self, file: str) -> threading.Event:
        """Let the next download of a large file stop half-way; the event tells that it has."""
        self._held[file] = threading.Event()
        return self._held[file]

    def release(self) -> None:
        """Break off the downloads that were held."""
        self._released.set()

    def create_repository(self, name: str, *, private: bool = False) -> Repository:
        made = Repository(self.folder / "git/models" / name, self.store, private=private)
        self.repositories[name] = made
        return made

    # -- the server -------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self) -> Iterator["Hub"]:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self._app(), log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()
            listener.close()

    def _app(self) -> Starlette:
        repo, files = "/api/models/{owner}/{name}", "/{owner}/{name}"
        routes = [
            ("/api/whoami-v2", self.whoami, "GET"),
            ("/api/repos/create", self.create, "POST"),
            ("/api/validate-yaml", self.validate, "POST"),
            (repo, self.info, "GET"),
            (repo + "/revision/{revision:path}", self.info, "GET"),
            (repo + "/tree/{revision}", self.list_tree, "GET"),
            (repo + "/tree/{revision}/{path:path}", self.list_tree, "GET"),
            (repo + "/paths-info/{revision:path}", self.paths_info, "POST"),
            (repo + "/refs", self.list_refs, "GET"),
            (repo + "/preupload/{revision:path}", self.preupload, "POST"),
            (repo + "/commit/{revision:path}", self.commit, "POST"),
            (repo + "/tag/{revision:path}", self.tag, "POST"),
            (repo + "/discussions", self.discuss, "POST"),
            (repo + "/discussions/{number:int}", self.review, "GET"),
            (repo + "/xet-{kind}-token/{revision:path}", self.xet_token, "GET"),
            (files + ".git/info/lfs/objects/batch", self.batch, "POST"),
            (files + ".git/info/lfs/verify", self.verify, "POST"),
            *((f"{files}{end}/info/refs", self.git, "GET") for end in (".git", "")),
            *((f"{files}{end}/git-upload-pack", self.git, "POST") for end in (".git", "")),
            (files + "/resolve/{revision}/{path:path}", self.resolve, "GET"),
            (files + "/raw/{revision}/{path:path}", self.raw, "GET"),
            ("/large/{oid}", lambda request: self.put_large(request), "PUT"),
            ("/large/{oid}/parts/{part:int}", self.put_part, "PUT"),
            ("/large/{oid}/parts", self.join_parts, "POST"),
            ("/large/{oid}/{file}", self.get_large, "GET"),
        ]
        return Starlette(
            routes=[Route(path, self._guarded(call), methods=[verb]) for path, call, verb in routes]
        )

    def _guarded(self, call):
        async def answer(request: Request) -> Response:
            self.calls.append(f"{request.method} {request.url.path}")
            try:
                return await call(request)
            except Refused as refused:
                return refused.response

        return answer

    def account(self, request: Request) -> tuple[str | None, str]:
        """Return who asks, and what the token is for."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind == "Basic":
            token = base64.b64decode(token).decode().partition(":")[2]
        if token and token not in ACCOUNTS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return ACCOUNTS.get(token, (None, ""))

    def opened(self, request: Request, *, write: bool = False) -> tuple[str, Repository]:
        path, (account, role) = request.path_params, self.account(request)
        name = f"{path['owner']}/{path['name']}"
        found = self.repositories.get(name)
        if found is None or (found.private and account != path["owner"]):
            raise Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and (account != path["owner"] or role != "write"):
            raise Refused(403 if account else 401, message="you may not write here")
        return name, found

    @staticmethod
    def at(request: Request, repository: Repository) -> str:
        revision = unquote(request.path_params.get("revision", "main"))
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def read(self, request: Request) -> tuple[str, str, Entry]:
        """Return commit, path and file that are asked for."""
        name, repository = self.opened(request)
        commit, path = self.at(request, repository), request.path_params["path"]
        account, _ = self.account(request)
        if repository.gated and account != name.partition("/")[0]:
            raise Refused(403 if account else 401, "GatedRepo", "gated")
        entry = repository.tree(commit).get(path)
        if entry is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return commit, path, entry

    def listed(self, path: str, entry: Entry) -> dict:
        """The entry of a tree, as the Hub answers it."""
        answer = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.large:
            oid, size = entry.large
            described = {"size": size, "pointerSize": len(entry.stored)}
            answer["lfs"] = described | {"oid": oid, "sha256": oid}
            if xet := self.store.xet_hash(oid):
                answer["xetHash"] = xet
        return answer

    # -- repositories -----------------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        account, role = self.account(request)
        if account is None:
            raise Refused(401, message="log in")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return JSONResponse({"type": "user", "name": account, "orgs": [], "auth": token})

    async def create(self, request: Request) -> Response:
        body, (account, role) = await request.json(), self.account(request)
        owner = body.get("organization") or account
        name = f"{owner}/{body['name']}"
        if name in self.repositories:
            return JSONResponse({"error": "exists", "url": f"{self.url}/{name}"}, 409)
        if account != owner or role != "write":
            raise Refused(403 if account else 401, message="you may not create this")
        private = bool(body.get("private")) or body.get("visibility") == "private"
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
        made = self.create_repository(name, private=private)
        made.commit(MAIN, {".gitattributes": attributes.encode()})
        return JSONResponse({"url": f"{self.url}/{name}", "name": name, "id": name})

    async def validate(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def info(self, request: Request) -> Response:
        name, repository = self.opened(request)
        commit = self.at(request, repository)
        files = [self.listed(path, entry) for path, entry in repository.tree(commit).items()]
        siblings = [
            {"rfilename": f["path"], "size": f["size"], "blobId": f["oid"], "lfs": f.get("lfs")}
            for f in files
        ]
        facts = {"private": repository.private, "gated": "auto" if repository.gated else False}
        return JSONResponse(
            {"_id": "0" * 24, "id": name, "sha": commit, "tags": [], "siblings": siblings, **facts}
        )

    async def list_tree(self, request: Request) -> Response:
        _, repository = self.opened(request)
        folder = request.path_params.get("path", "")
        top = f"{folder}/" if folder else ""
        deep = request.query_params.get("recursive", "").lower() in {"1", "true"}
        answer, folders = [], set()
        for path, entry in repository.tree(self.at(request, repository)).items():
            below = path.removeprefix(top) if path.startswith(top) else ""
            if below and (deep or "/" not in below):
                answer.append(self.listed(path, entry))
            elif below:
                folders.add(top + below.partition("/")[0])
        answer += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        return JSONResponse(answer)

    async def paths_info(self, request: Request) -> Response:
        _, repository = self.opened(request)
        tree = repository.tree(self.at(request, repository))
        if "json" in request.headers.get("content-type", ""):
            wanted = (await request.json())["paths"]
        else:
            wanted = [value for key, value in (await _form(request)) if key == "paths"]
        return JSONResponse([self.listed(path, tree[path]) for path in wanted if path in tree])

    async def list_refs(self, request: Request) -> Response:
        _, repository = self.opened(request)
        answer = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, commit in repository.refs.items():
            _, kind, name = ref.split("/", 2)
            answer[kinds[kind]].append({"name": name, "ref": ref, "targetCommit": commit})
        return JSONResponse(answer)

    async def tag(self, request: Request) -> Response:
        _, repository = self.opened(request, write=True)
        ref = "refs/tags/" + (await request.json())["tag"]
        if ref in repository.refs:
            raise Refused(409, message="Tag reference exists already")
        repository.set_ref(ref, self.at(request, repository))
        return JSONResponse({})

    async def discuss(self, request: Request) -> Response:
        name, repository = self.opened(request)
        body, (account, _) = await request.json(), self.account(request)
        if account is None or not body["pullRequest"]:
            raise Refused(401 if account is None else 400)
        number = _open_review(repository)
        return JSONResponse(
            {"num": number, "pullRequest": True, "url": f"{self.url}/{name}/discussions/{number}"}
        )

    async def review(self, request: Request) -> Response:
        name, repository = self.opened(request)
        number = request.path_params["number"]
        if f"refs/pr/{number}" not in repository.refs:
            raise Refused(404, message="no such pull request")
        facts = {"title": "test", "num": number, "status": "draft", "isPullRequest": True}
        about = {"repo": {"name": name, "type": "model"}, "createdAt": "2026-01-01T00:00:00.000Z"}
        changes = {"changes": {"base": MAIN}, "filesWithConflicts": [], "events": []}
        return JSONResponse(facts | about | changes)

    # -- commits ----------------------------------------------------------------------------

    async def preupload(self, request: Request) -> Response:
        proposed = "create_pr" in request.query_params or "pr/" in request.path_params["revision"]
        _, repository = self.opened(request, write=not proposed)
        tree = repository.tree(self.at(request, repository))
        answers = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": tree[item["path"]].oid if item["path"] in tree else None,
            }
            for item in (await request.json())["files"]
        ]
        return JSONResponse({"files": answers})

    async def commit(self, request: Request) -> Response:
        revision = unquote(request.path_params["revision"])
        wants_review = request.query_params.get("create_pr") == "1"
        is_review = wants_review or revision.startswith("refs/pr/")
        name, repository = self.opened(request, write=not is_review)
        parent = self.at(request, repository)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, parent) and not wants_review:
            raise Refused(412, message="the parent commit is stale")
        changes = self._changes(repository.tree(parent), lines)
        address, review = f"{self.url}/{name}", {}
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if wants_review:
            ref = f"refs/pr/{(number := _open_review(repository))}"
            review = {"pullRequestUrl": f"{address}/discussions/{number}"}
        oid = repository.change(ref, changes, parent=parent, title=header["summary"])
        return JSONResponse({"commitOid": oid, "commitUrl": f"{address}/commit/{oid}", **review})

    def _changes(self, tree: dict[str, Entry], lines: list[dict]) -> dict[str, bytes | None]:
        changes: dict[str, bytes | None] = {}
        for value, kind in [(line["value"], line["key"]) for line in lines]:
            if kind == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if not self.store.holds(value["oid"]):
                    raise Refused(400, message=f"{value['path']} was not uploaded")
                changes[value["path"]] = pointer(value["oid"], value["size"])
            elif kind == "deletedFile":
                changes[value["path"]] = None
            elif kind == "deletedFolder":
                below = value["path"].rstrip("/") + "/"
                changes |= {path: None for path in tree if path.startswith(below)}
        return changes

    # -- large files ------------------------------------------------------------------------

    async def batch(self, request: Request) -> Response:
        body = await request.json()
        upload = body["operation"] == "upload"
        name, repository = self.opened(request)
        account, _ = self.account(request)
        if (upload and account is None) or (repository.gated and account != name.split("/")[0]):
            raise Refused(403 if account else 401)
        in_parts = "multipart" in body.get("transfers", ())
        objects = [
            self._offer(name, item, upload=upload, in_parts=in_parts) for item in body["objects"]
        ]
        parts = any("chunk_size" in str(item.get("actions")) for item in objects)
        return JSONResponse(
            {"transfer": "multipart" if parts else "basic", "objects": objects},
            media_type="application/vnd.git-lfs+json",
        )

    def _offer(self, name: str, item: dict, *, upload: bool, in_parts: bool) -> dict:
        oid, size = item["oid"], item["size"]
        answer = {"oid": oid, "size": size, "authenticated": True}
        place = f"{self.url}/large/{oid}"
        if not upload and self.store.holds(oid):
            self.store.path(oid, size)
            answer["actions"] = {"download": {"href": f"{place}/file"}}
        elif not upload:
            answer["error"] = {"code": 404, "message": "no such object"}
        elif not self.store.holds(oid):
            action = {"href": place}
            if in_parts and size > 2 * _PART:
                count = -(-size // _PART)
                parts = {str(part): f"{place}/parts/{part}" for part in range(1, count + 1)}
                action = {"href": f"{place}/parts", "header": {"chunk_size": str(_PART), **parts}}
            verify = {"href": f"{self.url}/{name}.git/info/lfs/verify"}
            answer["actions"] = {"upload": action, "verify": verify}
        return answer

    async def verify(self, request: Request) -> Response:
        if not self.store.holds((await request.json())["oid"]):
            raise Refused(404, message="no such object")
        return Response()

    async def put_large(self, request: Request) -> Response:
        oid = request.path_params["oid"]
        # clients may send the same content twice at a time
        temporary = self.store.lfs / f"{oid}.{len(self.calls)}.part"
        await self._receive(request, temporary)
        return self._accept(oid, temporary)

    async def put_part(self, request: Request) -> Response:
        oid, part = request.path_params["oid"], request.path_params["part"]
        await self._receive(request, self.store.lfs / f"{oid}.{part}")
        return Response(headers={"ETag": f'"{part}"'})

    async def join_parts(self, request: Request) -> Response:
        oid, body = request.path_params["oid"], await request.json()
        with (temporary := self.store.lfs / f"{oid}.part").open("wb") as whole:
            for part in body["parts"]:
                with (path := self.store.lfs / f"{oid}.{part['partNumber']}").open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
                path.unlink()
        return self._accept(oid, temporary)

    async def _receive(self, request: Request, path: Path) -> None:
        with path.open("wb") as file:
            async for block in request.stream():
                self.received += file.write(block)

    def _accept(self, oid: str, temporary: Path) -> Response:
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != oid:
            raise Refused(400, message="not the content of this hash")
        temporary.rename(self.store.lfs / oid)
        self.uploaded.append(oid)
        return JSONResponse({})

    async def get_large(self, request: Request) -> Response:
        oid, file = request.path_params["oid"], request.path_params["file"].replace(":", "/")
        if file in self.tampered:
            return Response(self.tampered[file], headers={"ETag": f'"{oid}"'})
        path = self.store.lfs / oid
        if file in self.cut or file in self._held:
            content, waiting = path.read_bytes(), self._held.pop(file, None)
            sent = self.cut.pop(file, len(content) // 2)
            return StreamingResponse(
                self._break_off(content[:sent], waiting),
                headers={"ETag": f'"{oid}"', "Content-Length": str(len(content))},
            )
        self.sent += path.stat().st_size if request.method == "GET" else 0
        return FileResponse(path, headers={"ETag": f'"{oid}"'})

    async def _break_off(
        self, content: bytes, waiting: threading.Event | None
    ) -> AsyncIterator[bytes]:
        yield content
        if waiting:
            waiting.set()
            while not self._released.is_set():
                await asyncio.sleep(0.05)
        raise ConnectionError

    async def xet_token(self, request: Request) -> Response:
        self.opened(request, write=request.path_params["kind"] == "write")
        place, end = f"local://{self.store.cas}", int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": place,
            "X-Xet-Access-Token": "test",
            "X-Xet-Token-Expiration": str(end),
        }
        return JSONResponse({"casUrl": place, "accessToken": "test", "exp": end}, headers=headers)

    # -- files ------------------------------------------------------------------------------

    async def resolve(self, request: Request) -> Response:
        commit, path, entry = self.read(request)
        headers = {"X-Repo-Commit": commit}
        if entry.large is None:
            headers |= {"ETag": f'"{entry.oid}"'}
            return _in_range(request, self.tampered.get(path, entry.stored), headers)
        oid, size = entry.large
        headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{oid}"'}
        if xet := self.store.xet_hash(oid):
            name = "{owner}/{name}".format(**request.path_params)
            token = f"{self.url}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": xet, "Link": f'<{token}>; rel="xet-auth"'}
        if request.method == "GET":
            self.store.path(oid, size)
        # another host, because clients follow redirects on the same one by themselves
        elsewhere = self.url.replace("127.0.0.1", "localhost")
        file = path.replace("/", ":")
        return RedirectResponse(f"{elsewhere}/large/{oid}/{file}", 302, headers=headers)

    async def raw(self, request: Request) -> Response:
        commit, _, entry = self.read(request)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"'}
        return Response(entry.stored, media_type="text/plain", headers=headers)

    async def git(self, request: Request) -> Response:
        name, repository = self.opened(request)
        if repository.gated and self.account(request)[0] != name.partition("/")[0]:
            raise Refused(403, "GatedRepo", "gated")
        body = await request.body()
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.folder / "git/models"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{name}/{request.url.path.split('/', 3)[3]}",
            "REQUEST_METHOD": request.method,
            "QUERY_STRING": request.url.query,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, env=environment, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200")[:3])
        return Response(content, status, headers=headers)


def _in_range(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """Answer with the part that is asked for, or with everything."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if found is None:
        return Response(content, headers=headers)
    first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
    headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Response(content[first : last + 1], 206, headers=headers)


def _open_review(repository: Repository) -> int:
    """Open a pull request of what `main` is, and return its number."""
    number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
    repository.set_ref(f"refs/pr/{number}", repository.refs[MAIN])
    return number


async def _form(request: Request) -> list[tuple[str, str]]:
    return parse_qsl((await request.body()).decode())
