"""The client whose calls are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import httpx2

from df2serve.client import operations
from df2serve.client.connection import connection
from df2serve.client.operations import Call, Follow, Listener, Steps
from df2serve.client.problems import Patience
from df2serve.client.results import JobOutcome, Ranking, Result
from df2serve.client.uploads import (
    Parameters,
    StoredImage,
    file_of,
    outputs_of,
    query_of,
    upload_of,
    uploads_of,
)
from df2serve.config import ClientConfig
from df2serve.errors import Df2ServeError
from df2serve.service.jobs.schemas import JobInfo
from df2serve.service.schemas import ModelFacts, ModelList, Validation

if TYPE_CHECKING:
    from df2serve.client.uploads import FileSource, ImageSource

__all__ = ["AsyncClient", "AsyncJob"]

T = TypeVar("T")


class AsyncClient:
    """A df2serve service as Python objects; an asynchronous context manager.

    It does and raises what :class:`df2serve.client.Client` does.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:3000") as client:  # doctest: +SKIP
        ...     result = await client.predict("cells.tif", tta="none")
        >>> result.mask, result.scores.uncertainty_score, result.needs_review  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        config: ClientConfig | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """See :class:`df2serve.client.Client`."""
        self._config = config or ClientConfig()
        self._http = httpx2.AsyncClient(
            **connection(url, api_key, self._config), transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> ModelList:
        """List the models."""
        return await self._run(operations.models())

    async def model(self, name: str | None = None) -> ModelFacts:
        """Tell everything of a model, the default one if none is named."""
        return await self._run(operations.model(name))

    async def validate(
        self, image: ImageSource, *, model: str | None = None, **parameters: Unpack[Parameters]
    ) -> Validation:
        """See :meth:`df2serve.client.Client.validate`."""
        query = query_of(parameters)
        return await self._run(operations.validate(model, upload_of(image), query))

    async def predict(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        probs: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """See :meth:`df2serve.client.Client.predict`."""
        query = query_of(parameters) | outputs_of(parameters, probs=probs)
        return await self._run(operations.predict(model, upload_of(image), query))

    async def upload(self, image: FileSource) -> StoredImage:
        """See :meth:`df2serve.client.Client.upload`."""
        return await self._run(operations.upload(file_of(image), self._config))

    async def remove(self, image: StoredImage) -> None:
        """See :meth:`df2serve.client.Client.remove`."""
        await self._run(operations.remove(image))

    async def submit(
        self,
        images: Iterable[ImageSource],
        *,
        model: str | None = None,
        probs: bool = False,
        key: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncJob:
        """See :meth:`df2serve.client.Client.submit`."""
        query = query_of(parameters) | outputs_of(parameters, probs=probs)
        return AsyncJob(
            self, await self._run(operations.submit(model, uploads_of(images), query, key))
        )

    async def job(self, id: str) -> AsyncJob:
        """Return a job that was handed in before.

        Raises:
            ServiceError: there is none.
        """
        return AsyncJob(self, await self._run(operations.describe(id)))

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Follow):
                        answer = await self._follow(step)
                    else:
                        answer = await self._call(step)
                except Df2ServeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _call(self, call: Call) -> httpx2.Response:
        patience = Patience(self._config)
        await asyncio.sleep(call.pause_s)
        while True:
            try:
                with call.files() as files:
                    answer = await self._http.request(
                        call.method,
                        call.path,
                        params=call.query,
                        headers=call.headers,
                        content=call.content,
                        files=files,
                    )
                pause = patience.after_answer(answer)
            except httpx2.TransportError as error:
                pause = patience.after_loss(error, repeatable=call.repeatable)
            if pause is None:
                return answer
            await asyncio.sleep(pause)

    async def _follow(self, follow: Follow) -> httpx2.Response:
        patience, headers = Patience(self._config), dict[str, str]()
        while True:
            try:
                async with self._http.stream("GET", follow.path, headers=headers) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    pause = patience.after_answer(answer)
                    if pause is None:
                        async for event in httpx2.EventSource(answer):
                            patience.renew()
                            headers["Last-Event-ID"] = event.id
                            if follow.is_last(event):
                                return httpx2.Response(200, content=event.data)
                        pause = patience.after_loss(httpx2.ReadError("the events stopped"))
            except httpx2.TransportError as error:
                pause = patience.after_loss(error)
            await asyncio.sleep(pause)


class AsyncJob:
    """Images that a service predicts when it has time."""

    def __init__(self, client: AsyncClient, info: JobInfo) -> None:
        """Name the job of a client."""
        self._client = client
        self.info = info
        """The job as it was when it was last asked for."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.info.state})"

    @property
    def id(self) -> str:
        """Name of the job, for :meth:`AsyncClient.job`."""
        return self.info.id

    async def refresh(self) -> JobInfo:
        """Ask how the job is."""
        self.info = await self._client._run(operations.describe(self.id))
        return self.info

    async def wait(self, listener: Listener | None = None) -> JobInfo:
        """See :meth:`df2serve.client.Job.wait`; the listener is no coroutine."""
        self.info = await self._client._run(operations.wait(self.id, listener))
        return self.info

    async def results(self) -> AsyncIterator[JobOutcome]:
        """Fetch what there is, image by image; those that failed have an error instead."""
        listed = await self._client._run(operations.results(self.id))
        for item in listed.items:
            if item.state in ("successful", "failed"):
                yield await self._client._run(operations.outcome(self.id, item))

    async def ranking(self) -> Ranking:
        """List the images by decreasing U.

        Raises:
            ServiceError: none has a result yet.
        """
        return await self._client._run(operations.ranking(self.id))

    async def cancel(self) -> JobInfo:
        """Stop the job before its next batch of tiles; one that has ended stays as it is."""
        self.info = await self._client._run(operations.cancel(self.id))
        return self.info
