"""A stand-in for the server of the Zoo, where starting the real one takes too long.

It gives the answers that Hypha gives (`test_zoo_server.py` uploads to Hypha itself), and proves
nothing about Hypha: only what our client asks for, in which order, and what it does when answers
are other than they should be.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

COLLECTION = "bioimage-io/bioimage.io"
TOKEN = "an.account.token"
SIGNATURE = "Signature=secret"


class ZooDouble:
    def __init__(self) -> None:
        self.model: dict | None = None
        """The only model that it has room for."""
        self.stored: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict]] = []
        self.puts: list[tuple[str, dict[str, str]]] = []
        """Names and headers of the files that were sent."""
        self.answers: dict[str, Response] = {}
        """What is answered to a method instead of what should be."""
        self.url = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator["ZooDouble"]:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        routes = [
            Route("/public/services/artifact-manager/{method}", self.answer, methods=["POST"]),
            Route("/storage/{file:path}", self.put, methods=["PUT"]),
            Route("/storage/{file:path}", self.get, methods=["GET"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="critical", lifespan="off", ws="none"
        )
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

    def publish(self) -> None:
        """Do what a reviewer does."""
        number = len(self.model["versions"])
        self.model |= {"versions": [*self.model["versions"], {"version": f"v{number}"}]}
        self.model |= {"staging": None}

    async def answer(self, request: Request) -> Response:
        method, arguments = request.path_params["method"], await request.json()
        self.calls.append((method, arguments))
        if method in self.answers:
            return self.answers[method]
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            detail = "RemoteException: PermissionError: User does not have permission"
            return JSONResponse({"success": False, "detail": detail}, 403)
        return JSONResponse(getattr(self, method)(**arguments))

    async def put(self, request: Request) -> Response:
        file = request.path_params["file"]
        self.puts.append((file, dict(request.headers)))
        if "PUT" in self.answers:
            return self.answers["PUT"]
        self.stored[file] = await request.body()
        return Response()

    async def get(self, request: Request) -> Response:
        return Response(self.stored[request.path_params["file"]])

    # -- methods of the artifact service ----------------------------------------------------

    def read(self, artifact_id: str, stage: bool = False) -> dict:
        if artifact_id == COLLECTION:
            permissions = {"*": ["read"], "@": "rw", "reviewer-1": "rw+", "visitor-2": ["list"]}
            return {"config": {"permissions": permissions}}
        return self.model

    def create(self, **arguments: object) -> dict:
        self.model = {
            "id": "bioimage-io/kind-otter",
            "parent_id": arguments["parent_id"],
            "type": "model",
            "manifest": arguments["manifest"],
            "versions": [],
            "staging": [{"_intent": "new_version"}],
        }
        return self.model

    def edit(self, manifest: dict, stage: bool = False, version: str = "", **_: object) -> dict:
        intent = "new_version" if version == "new" else "edit_version"
        self.model |= {"manifest": manifest, "staging": [{"_intent": intent}] if stage else None}
        return self.model

    def put_file(self, file_path: str, **_: object) -> str:
        return f"{self.url}/storage/{file_path}?{SIGNATURE}"

    get_file = put_file

    def list_files(self, dir_path: str = "", **_: object) -> list[dict]:
        top = f"{dir_path}/" if dir_path else ""
        below = [name.removeprefix(top) for name in self.stored if name.startswith(top)]
        folders = sorted({name.partition("/")[0] for name in below if "/" in name})
        files = [name for name in below if "/" not in name]
        sizes = {name: len(self.stored[top + name]) for name in files}
        return [{"type": "directory", "name": name} for name in folders] + [
            {"type": "file", "name": name, "size": size} for name, size in sizes.items()
        ]

    def remove_file(self, file_path: str, **_: object) -> None:
        del self.stored[file_path]

    def discard(self, **_: object) -> dict:
        self.model |= {"staging": None}
        return self.model

    def delete(self, **_: object) -> None:
        self.model = None
