"""Uploads that come in several requests, and survive whatever ends between them.

    uploads/ID/upload.json        what was announced, by whom
    uploads/ID/data               what has come so far; its length is the offset
    uploads/ID/chunk              a part whose checksum is not verified yet

A folder without ``upload.json`` belongs to a request that is under way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from starlette.requests import ClientDisconnect

from df2serve.config import Frozen
from df2serve.service.ingest import Upload, safe_name
from df2serve.service.jobs.store import now
from df2serve.service.problems import Code, Problem
from df2serve.service.records import read_record, write_record
from df2serve.service.settings import Settings

__all__ = [
    "ALGORITHMS",
    "UPLOAD_PATTERN",
    "Checksum",
    "UploadSpec",
    "Uploads",
    "parse_checksum",
    "parse_metadata",
]

UPLOAD_PATTERN = "^[0-9a-f]{32}$"
"""Of ids."""

ALGORITHMS = ("sha1", "sha256")
"""Checksums that a part of an upload may have; the protocol demands the first."""

_SILENCE_SECONDS = 60.0
"""How long a request may send nothing."""
_STALE_SECONDS = 5.0
"""How long it may do so while another one wants to go on with the same upload."""


class UploadSpec(Frozen):
    """What an upload is going to be."""

    id: str
    owner: str
    created: str
    """ISO 8601 in UTC."""
    name: str
    """What the client calls the file; shown to people only."""
    length: int
    """Bytes, once it is whole."""
    metadata: str | None = None
    """As it was announced."""


@dataclass(frozen=True)
class Checksum:
    """Of a part of an upload."""

    algorithm: str
    digest: bytes


def parse_metadata(text: str | None) -> dict[str, bytes]:
    """Return the pairs of a header ``Upload-Metadata``.

    Raises:
        Problem: it is none.

    Source:
        tus 1.0.0, extension creation: keys and values in base64, pairs with commas between.

    Example:
        >>> parse_metadata("filename Y2VsbHMudGlm,is_confidential")
        {'filename': b'cells.tif', 'is_confidential': b''}
    """
    pairs: dict[str, bytes] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.strip().partition(" ")
        if not key or not key.isascii() or key in pairs:
            message = "Upload-Metadata: expected different names of ASCII, each with its value"
            raise Problem(Code.MALFORMED_REQUEST, message)
        pairs[key] = _from_base64(value, f"Upload-Metadata: the value of {key!r}")
    return pairs


def parse_checksum(text: str) -> Checksum:
    """Return what a header ``Upload-Checksum`` says.

    Raises:
        Problem: it is none, or of another algorithm.

    Source:
        tus 1.0.0, extension checksum: the algorithm, a space, the hash in base64.
    """
    algorithm, _, value = text.partition(" ")
    if algorithm not in ALGORITHMS:
        message = f"Upload-Checksum: expected one of {', '.join(ALGORITHMS)}, and a hash in base64"
        raise Problem(Code.MALFORMED_REQUEST, message)
    return Checksum(algorithm, _from_base64(value, "Upload-Checksum: the hash"))


@dataclass(eq=False)
class _Turn:
    """A request that writes to an upload; no other does meanwhile."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    limit: asyncio.Timeout | None = None
    """While it waits for bytes."""

    def is_stale(self) -> bool:
        """Whether nothing came for so long that its connection may be lost."""
        deadline = self.limit and self.limit.when()
        if deadline is None:
            return False
        return asyncio.get_running_loop().time() > deadline - _SILENCE_SECONDS + _STALE_SECONDS

    def end(self) -> None:
        """Let it wait for bytes no longer."""
        if self.limit is not None:
            self.limit.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All uploads of the service."""

    def __init__(self, settings: Settings) -> None:
        """Describe them; nothing is read yet."""
        self.largest = min(settings.max_upload_bytes, settings.queue_bytes)
        """Bytes of an upload."""
        self._settings = settings
        self._root = settings.state / "uploads"
        self._specs: dict[str, UploadSpec] = {}
        self._digests: dict[str, str] = {}
        """SHA-256 of whole uploads that were used."""
        self._turns: dict[str, _Turn] = {}

    def load(self) -> None:
        """Read what an earlier process has left; call it at the start only."""
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            spec = read_record(folder / "upload.json", UploadSpec)
            if spec is None:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            (folder / "chunk").unlink(missing_ok=True)
            self._specs[spec.id] = spec

    # -- what there is ------------------------------------------------------------------------

    def get(self, id: str, owner: str) -> UploadSpec:
        """Return an upload.

        Raises:
            Problem: there is none, or it is somebody else's.
        """
        spec = self._specs.get(id)
        if spec is None or spec.owner != owner or self.expires(spec) <= time.time():
            raise self._missing()
        return spec

    def of(self, owner: str) -> Iterator[UploadSpec]:
        """Yield somebody's uploads, in the order in which they were announced."""
        for spec in sorted(self._specs.values(), key=lambda spec: (spec.created, spec.id)):
            with suppress(Problem):
                yield self.get(spec.id, owner)

    def offset(self, spec: UploadSpec) -> int:
        """Return how many bytes have come.

        Raises:
            Problem: it was removed meanwhile.
        """
        return self._stat(spec).st_size

    def expires(self, spec: UploadSpec) -> float:
        """Return when it is going to be removed, in seconds since 1970.

        Raises:
            Problem: it was removed meanwhile.
        """
        return self._stat(spec).st_mtime + 3600 * self._settings.upload_hours

    # -- their lives --------------------------------------------------------------------------

    async def create(self, owner: str, length: int, metadata: str | None) -> UploadSpec:
        """Accept an upload of which nothing has come yet.

        Raises:
            Problem: it is too large, one too many, or not described well.
        """
        name = parse_metadata(metadata).get("filename")
        try:
            text = None if name is None else name.decode()
        except UnicodeDecodeError as error:
            message = "Upload-Metadata: the value of 'filename' is no UTF-8"
            raise Problem(Code.MALFORMED_REQUEST, message) from error
        self._check_room(owner, length)
        spec = UploadSpec(
            id=uuid.uuid4().hex,
            owner=owner,
            created=now(),
            name=safe_name(text),
            length=length,
            metadata=metadata,
        )
        self._specs[spec.id] = spec  # counts from now on
        try:
            await asyncio.to_thread(self._create, spec)
        except BaseException:
            del self._specs[spec.id]
            raise
        return spec

    async def receive(
        self,
        spec: UploadSpec,
        offset: int,
        stream: AsyncIterator[bytes],
        *,
        announced: int = 0,
        checksum: Checksum | None = None,
    ) -> int:
        """Write a part of an upload; return how many bytes there are then.

        What has come stays when the connection breaks, unless it had a checksum.

        Args:
            spec: the upload.
            offset: where the part begins.
            stream: the part.
            announced: bytes of the part, as far as known.
            checksum: of the part.

        Raises:
            Problem: it begins elsewhere, is too long or not what its checksum says; another request
                writes to the upload, or the client went away.
            OSError: it cannot be written.
        """
        async with self._turn(spec.id) as turn:
            spec = self.get(spec.id, spec.owner)
            present = self.offset(spec)
            if offset != present:
                text = f"got Upload-Offset {offset}; {present} bytes are here, go on behind them"
                raise Problem(Code.OFFSET_CONFLICT, text, headers={"Upload-Offset": str(present)})
            room = spec.length - present
            if announced > room:
                raise _too_long(room, announced)
            if checksum is None:
                with FileIO(self._data(spec), "ab") as file:
                    await self._write(file, stream, turn, room)
                    await asyncio.to_thread(os.fsync, file.fileno())
            else:
                await self._write_verified(spec, stream, turn, room, checksum)
            return self.offset(spec)

    async def remove(self, spec: UploadSpec) -> None:
        """Remove an upload; jobs that were made of it keep its bytes.

        Raises:
            Problem: another request writes to it.
        """
        async with self._turn(spec.id):
            self._specs.pop(spec.id, None)
            self._digests.pop(spec.id, None)
            await asyncio.to_thread(self._remove, spec)

    async def take(self, id: str, folder: Path, *, owner: str) -> Upload:
        """Put the bytes of a whole upload into a folder, as a file that has come with a request.

        Raises:
            Problem: there is none, it is not whole, or empty.
        """
        spec = self.get(id, owner)
        missing = spec.length - self.offset(spec)
        if missing:
            text = f"{missing} bytes of the upload {id} are missing; send them first"
            raise Problem(Code.UPLOAD_INCOMPLETE, text)
        if not spec.length:
            raise Problem(Code.MALFORMED_REQUEST, f"the upload {id} is empty")
        target = folder / f"{uuid.uuid4().hex}.upload"
        try:
            await asyncio.to_thread(_link, self._data(spec), target)
        except FileNotFoundError as error:
            raise self._missing() from error
        if id not in self._digests:
            digest = await asyncio.to_thread(_sha256, target)
            if id in self._specs:
                self._digests[id] = digest
            return Upload(target, spec.name, spec.length, digest)
        return Upload(target, spec.name, spec.length, self._digests[id])

    async def sweep(self) -> None:
        """Remove uploads that were left alone for too long."""
        for spec in list(self._specs.values()):
            with suppress(Problem):  # another request writes to it or removes it
                if self.expires(spec) <= time.time():
                    await self.remove(spec)

    # -- files --------------------------------------------------------------------------------

    def _data(self, spec: UploadSpec) -> Path:
        return self._root / spec.id / "data"

    def _stat(self, spec: UploadSpec) -> os.stat_result:
        try:
            return self._data(spec).stat()
        except FileNotFoundError as error:
            raise self._missing() from error

    def _missing(self) -> Problem:
        hours = self._settings.upload_hours
        text = f"there is no such upload; they are removed {hours:g} h after their last byte came"
        return Problem(Code.UPLOAD_NOT_FOUND, text)

    def _create(self, spec: UploadSpec) -> None:
        data = self._data(spec)
        data.parent.mkdir()
        try:
            data.touch()
            write_record(data.with_name("upload.json"), spec)
        except BaseException:
            shutil.rmtree(data.parent, ignore_errors=True)
            raise

    def _remove(self, spec: UploadSpec) -> None:
        folder = self._data(spec).parent
        (folder / "upload.json").unlink(missing_ok=True)  # what is left goes with the next start
        shutil.rmtree(folder, ignore_errors=True)

    def _check_room(self, owner: str, length: int) -> None:
        """Refuse an upload that is too large or one too many.

        Raises:
            Problem: it is.
        """
        if length > self.largest:
            raise _too_long(self.largest, length)
        settings = self._settings
        own = [spec for spec in self._specs.values() if spec.owner == owner]
        if (
            len(own) >= settings.max_uploads
            or sum(spec.length for spec in own) + length > settings.max_uploads_bytes
        ):
            text = (
                f"there may be {settings.max_uploads} uploads with {settings.max_uploads_bytes} "
                "bytes; remove those that are not needed any more (DELETE /v1/uploads/ID)"
            )
            ends = [self.expires(spec) for spec in self.of(owner)]
            raise Problem(
                Code.QUOTA_EXCEEDED, text, retry_after=min(ends, default=0.0) - time.time()
            )
        if length > shutil.disk_usage(self._root).free:
            text = "the service has not enough space for this upload; try again later"
            raise Problem(Code.INSUFFICIENT_STORAGE, text)

    # -- one request --------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, id: str) -> AsyncIterator[_Turn]:
        """Be the only one who writes to an upload.

        Where the one before is silent, as those are whose connections are lost, it is ended.

        Raises:
            Problem: another request does.
        """
        while (holder := self._turns.get(id)) is not None:
            if holder.is_stale():
                holder.end()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await holder.over.wait()
                    continue
            text = "another request writes to the upload; ask for its offset, and go on"
            raise Problem(Code.UPLOAD_LOCKED, text, retry_after=1)
        turn = self._turns[id] = _Turn()
        try:
            yield turn
        finally:
            del self._turns[id]
            turn.over.set()

    async def _write(
        self, file: FileIO, stream: AsyncIterator[bytes], turn: _Turn, room: int
    ) -> None:
        """Append to a file what comes.

        Raises:
            Problem: it is more than there is room for, of which nothing stays then; or it stops.
        """
        start, loop = file.seek(0, os.SEEK_END), asyncio.get_running_loop()
        left = room
        try:
            async with asyncio.timeout(_SILENCE_SECONDS) as turn.limit:
                async for chunk in stream:
                    turn.limit.reschedule(loop.time() + _SILENCE_SECONDS)
                    left -= len(chunk)
                    if left < 0:
                        file.truncate(start)
                        raise _too_long(room)
                    _append(file, chunk)
        except ClientDisconnect as error:
            raise Problem(Code.CANCELLED, "the client went away") from error
        except TimeoutError as error:
            if turn.limit is None or not turn.limit.expired():
                raise
            raise Problem(Code.CANCELLED, "nothing came for too long; go on later") from error
        finally:
            turn.limit = None

    async def _write_verified(
        self,
        spec: UploadSpec,
        stream: AsyncIterator[bytes],
        turn: _Turn,
        room: int,
        checksum: Checksum,
    ) -> None:
        """Append what comes once it is known to be right; what is killed meanwhile leaves nothing.

        Raises:
            Problem: it is not right, or see :meth:`_write`.
        """
        chunk = self._data(spec).with_name("chunk")
        try:
            with FileIO(chunk, "wb") as file:
                await self._write(file, stream, turn, room)
            await asyncio.to_thread(_append_verified, chunk, self._data(spec), checksum)
        finally:
            chunk.unlink(missing_ok=True)


def _append(file: FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _append_verified(chunk: Path, data: Path, checksum: Checksum) -> None:
    with chunk.open("rb") as source:
        if hashlib.file_digest(source, checksum.algorithm).digest() != checksum.digest:
            text = f"the bytes have another {checksum.algorithm}; send them again"
            raise Problem(Code.CHECKSUM_MISMATCH, text)
        source.seek(0)
        with data.open("ab") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: Path, target: Path) -> None:
    """Give a file that never changes a second name, or copy it where files have one name only."""
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _too_long(most: int, got: int | None = None) -> Problem:
    """Return the problem of an upload, or a part of one, that is too long."""
    told = "" if got is None else f"got {got} bytes, "
    members = {"limit": most} | ({} if got is None else {"actual": got})
    return Problem(Code.BODY_TOO_LARGE, f"{told}expected {most} at most", members=members)


def _from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Problem(Code.MALFORMED_REQUEST, f"{what} is no base64") from error
