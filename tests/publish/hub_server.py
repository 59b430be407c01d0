"""A Hub on this machine for tests: what the real huggingface_hub asks of it, and nothing more.

Commits, refs, large files by their hash, private and gated repositories, two accounts. It keeps
everything in memory and knows neither xet nor git's own protocol.
"""

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

OWNER, READER = "hf_owner", "hf_reader"
"""Tokens: of the account `lab`, which may write, and of the account `guest`."""
ACCOUNTS = {OWNER: "lab", READER: "guest"}
LARGE = (".safetensors", ".npy", ".npz", ".onnx", ".pt", ".zip", ".png")


@dataclass(frozen=True)
class Blob:
    """A file at one commit."""

    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
            f"size {len(self.content)}\n"
        ).encode()

    def listed(self, name: str) -> dict:
        """The entry of a tree, as the Hub answers it."""
        large = name.endswith(LARGE)
        stored = self.pointer() if large else self.content
        oid = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
        entry = {"type": "file", "path": name, "oid": oid, "size": len(self.content)}
        if large:
            described = {"size": len(self.content), "pointerSize": len(stored)}
            entry["lfs"] = described | {"oid": self.sha256, "sha256": self.sha256}
        return entry


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Commits by the full names of branches, tags and pull requests."""

    def commit(self, ref: str, files: dict[str, Blob]) -> str:
        listed = sorted((name, blob.sha256) for name, blob in files.items())
        described = json.dumps([self.refs.get(ref), len(self.commits), listed])
        oid = hashlib.sha1(described.encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        found = next((self.refs[name] for name in names if name in self.refs), None)
        return found or (revision if revision in self.commits else None)


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "refused") -> None:
        self.response = JSONResponse(
            {"error": message},
            status,
            headers={"X-Error-Code": code, "X-Error-Message": message, "X-Request-Id": "test"},
        )


class Hub:
    """The server, and what a test wants to see and to change."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.calls: list[str] = []
        """Method and path of every request."""
        self.uploaded: list[str] = []
        """Hashes of large files that were sent."""
        self.tampered: dict[str, bytes] = {}
        """What is sent for the name of a file instead of its content."""
        self.url = ""

    # -- the server -------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self._app(), log_level="error", lifespan="off", ws="none")
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
        repo = "/api/models/{owner}/{name}"
        routes = [
            ("/api/repos/create", self.create, "POST"),
            ("/api/validate-yaml", self.validate, "POST"),
            (repo, self.info, "GET"),
            (repo + "/revision/{revision:path}", self.info, "GET"),
            (repo + "/tree/{revision}", self.tree, "GET"),
            (repo + "/refs", self.list_refs, "GET"),
            (repo + "/preupload/{revision}", self.preupload, "POST"),
            (repo + "/commit/{revision}", self.commit, "POST"),
            (repo + "/tag/{revision}", self.tag, "POST"),
            ("/{owner}/{name}.git/info/lfs/objects/batch", self.batch, "POST"),
            ("/large/{oid}", lambda request: self.put_large(request), "PUT"),
            ("/large/{oid}/{file}", self.get_large, "GET"),
            ("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve, "GET"),
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

    def account(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in ACCOUNTS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return ACCOUNTS.get(token)

    def opened(self, request: Request, *, write: bool = False) -> tuple[str, Repository]:
        path, account = request.path_params, self.account(request)
        name = f"{path['owner']}/{path['name']}"
        found = self.repositories.get(name)
        if found is None or (found.private and account != path["owner"]):
            raise Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and account != path["owner"]:
            raise Refused(403 if account else 401, message="you may not write here")
        return name, found

    @staticmethod
    def at(request: Request, repository: Repository) -> str:
        revision = unquote(request.path_params.get("revision", "main"))
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # -- answers ----------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body, account = await request.json(), self.account(request)
        owner = body.get("organization") or account
        name = f"{owner}/{body['name']}"
        if name in self.repositories:
            return JSONResponse({"error": "exists", "url": f"{self.url}/{name}"}, 409)
        if account != owner:
            raise Refused(403 if account else 401, message="you may not create this")
        private = bool(body.get("private")) or body.get("visibility") == "private"
        made = self.repositories[name] = Repository(private=private)
        made.commit("refs/heads/main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")})
        return JSONResponse({"url": f"{self.url}/{name}", "name": name, "id": name})

    async def validate(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def info(self, request: Request) -> Response:
        name, repository = self.opened(request)
        commit = self.at(request, repository)
        files = [blob.listed(path) for path, blob in repository.commits[commit].items()]
        siblings = [
            {"rfilename": f["path"], "size": f["size"], "blobId": f["oid"], "lfs": f.get("lfs")}
            for f in files
        ]
        facts = {"private": repository.private, "gated": "auto" if repository.gated else False}
        return JSONResponse(
            {"_id": "0" * 24, "id": name, "sha": commit, "tags": [], "siblings": siblings, **facts}
        )

    async def tree(self, request: Request) -> Response:
        _, repository = self.opened(request)
        files = repository.commits[self.at(request, repository)]
        return JSONResponse([blob.listed(path) for path, blob in files.items()])

    async def list_refs(self, request: Request) -> Response:
        _, repository = self.opened(request)
        answer = {"branches": [], "tags": [], "converts": []}
        for kind, folder in (("branches", "refs/heads/"), ("tags", "refs/tags/")):
            answer[kind] = [
                {"name": ref.removeprefix(folder), "ref": ref, "targetCommit": commit}
                for ref, commit in repository.refs.items()
                if ref.startswith(folder)
            ]
        return JSONResponse(answer)

    async def preupload(self, request: Request) -> Response:
        _, repository = self.opened(request, write="create_pr" not in request.query_params)
        files = repository.commits[self.at(request, repository)]
        answers = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": files[item["path"]].listed(item["path"])["oid"]
                if item["path"] in files
                else None,
            }
            for item in (await request.json())["files"]
        ]
        return JSONResponse({"files": answers})

    async def batch(self, request: Request) -> Response:
        self.opened(request)
        known = self.large()
        objects = []
        for item in (await request.json())["objects"]:
            answer = {"oid": item["oid"], "size": item["size"], "authenticated": True}
            if item["oid"] not in known:
                answer["actions"] = {"upload": {"href": f"{self.url}/large/{item['oid']}"}}
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects})

    def large(self) -> dict[str, bytes]:
        stored = {
            blob.sha256: blob.content
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for name, blob in files.items()
            if name.endswith(LARGE)
        }
        return stored | self.uploads

    async def put_large(self, request: Request) -> Response:
        content, oid = await request.body(), request.path_params["oid"]
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, message="not the content of this hash")
        self.uploads[oid] = content
        self.uploaded.append(oid)
        return Response()

    async def commit(self, request: Request) -> Response:
        wants_review = request.query_params.get("create_pr") == "1"
        name, repository = self.opened(request, write=not wants_review)
        parent = self.at(request, repository)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, parent) and not wants_review:
            raise Refused(412, message="the parent commit is stale")
        files, known = dict(repository.commits[parent]), self.large()
        for value, kind in [(line["value"], line["key"]) for line in lines]:
            if kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                files[value["path"]] = Blob(known[value["oid"]])
            elif kind == "deletedFile":
                del files[value["path"]]
        reviews = sum(ref.startswith("refs/pr/") for ref in repository.refs)
        ref = f"refs/pr/{reviews + 1}" if wants_review else "refs/heads/main"
        oid = repository.commit(ref, files)
        address = f"{self.url}/{name}"
        review = {"pullRequestUrl": f"{address}/discussions/{reviews + 1}"} if wants_review else {}
        return JSONResponse({"commitOid": oid, "commitUrl": f"{address}/commit/{oid}", **review})

    async def tag(self, request: Request) -> Response:
        _, repository = self.opened(request, write=True)
        ref = "refs/tags/" + (await request.json())["tag"]
        if ref in repository.refs:
            raise Refused(409, message="Tag reference exists already")
        repository.refs[ref] = self.at(request, repository)
        return JSONResponse({})

    async def resolve(self, request: Request) -> Response:
        name, repository = self.opened(request)
        commit, path = self.at(request, repository), request.path_params["path"]
        if repository.gated and self.account(request) != name.partition("/")[0]:
            raise Refused(403 if self.account(request) else 401, "GatedRepo", "gated")
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        listed, headers = blob.listed(path), {"X-Repo-Commit": commit}
        if "lfs" in listed:
            headers |= {"X-Linked-Size": str(listed["size"]), "X-Linked-Etag": f'"{blob.sha256}"'}
            # another host, because clients follow redirects on the same one by themselves
            elsewhere = self.url.replace("127.0.0.1", "localhost")
            file = path.replace("/", ":")
            return RedirectResponse(f"{elsewhere}/large/{blob.sha256}/{file}", 302, headers=headers)
        headers |= {"ETag": f'"{listed["oid"]}"'}
        return Response(self.tampered.get(path, blob.content), headers=headers)

    async def get_large(self, request: Request) -> Response:
        oid, file = request.path_params["oid"], request.path_params["file"].replace(":", "/")
        content = self.tampered.get(file, self.large()[oid])
        return Response(content, headers={"ETag": f'"{oid}"'})
