"""The client whose calls wait for their answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
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

__all__ = ["Client", "Job"]

T = TypeVar("T")


class Client:
    """A df2serve service as Python objects; a context manager.

    Errors are those of :mod:`df2serve.errors`, as if the work were done here; what concerns the
    service itself is a ``ServiceError``. A busy service is asked again when it says so.

    Example:
        >>> with Client("http://127.0.0.1:3000") as client:  # doctest: +SKIP
        ...     result = client.predict("cells.tif", tta="none")
        >>> result.mask, result.scores.uncertainty_score, result.needs_review  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        config: ClientConfig | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Describe the connection; nothing is sent yet.

        Args:
            url: address of the service.
            api_key: key of the service; that of the variable ``DF2SERVE_API_KEY`` when absent.
            config: patience and timeouts.
            transport: how requests are sent, for proxies and certificates of one's own.

        Raises:
            ConfigError: the address or the key is none.
        """
        self._config = config or ClientConfig()
        self._http = httpx2.Client(**connection(url, api_key, self._config), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> ModelList:
        """List the models."""
        return self._run(operations.models())

    def model(self, name: str | None = None) -> ModelFacts:
        """Tell everything of a model, the default one if none is named."""
        return self._run(operations.model(name))

    def validate(
        self, image: ImageSource, *, model: str | None = None, **parameters: Unpack[Parameters]
    ) -> Validation:
        """Say what a prediction would be, from the header of the image alone.

        Args:
            image: path of a file, the content of one, an array, or what :meth:`upload` gave.
            model: name of the model; the default one when absent.
            parameters: see :class:`Parameters`.

        Raises:
            Df2ServeError: the error that a prediction would give.
        """
        query = query_of(parameters)
        return self._run(operations.validate(model, upload_of(image), query))

    def predict(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        probs: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """Predict an image, however long it takes; the arrays are those of a local prediction.

        Args:
            image: path of a file, the content of one, an array, or what :meth:`upload` gave.
            model: name of the model; the default one when absent.
            probs: fetch the probabilities as well.
            parameters: see :class:`Parameters`; with ``instances`` there are labels.

        Raises:
            InputError: the image or the parameters cannot be used.
            ServiceError: the service cannot be reached, is busy or failed.
        """
        query = query_of(parameters) | outputs_of(parameters, probs=probs)
        return self._run(operations.predict(model, upload_of(image), query))

    def upload(self, image: FileSource) -> StoredImage:
        """Send an image in parts, going on where it broke off; for large ones and bad connections.

        The service keeps it for a while. It can be used wherever an image is expected, and several
        times.

        Args:
            image: path of a file, the content of one, or an array.

        Raises:
            InputError: there is no such file, or it is too large.
            ServiceError: the service cannot be reached or is busy, and there is no progress.
        """
        return self._run(operations.upload(file_of(image), self._config))

    def remove(self, image: StoredImage) -> None:
        """Remove an image that was uploaded; jobs that were made of it go on.

        Raises:
            ServiceError: there is none.
        """
        self._run(operations.remove(image))

    def submit(
        self,
        images: Iterable[ImageSource],
        *,
        model: str | None = None,
        probs: bool = False,
        key: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """Hand in images to be predicted when there is time.

        Args:
            images: see :meth:`predict`.
            model: name of the model; the default one when absent.
            probs: compute the probabilities as well.
            key: a second call with the same one gives the same job (``Idempotency-Key``).
            parameters: see :class:`Parameters`.

        Raises:
            InputError: the parameters cannot be used; of images, see :meth:`Job.results`.
            ServiceError: the service cannot be reached or is busy.
        """
        query = query_of(parameters) | outputs_of(parameters, probs=probs)
        return Job(self, self._run(operations.submit(model, uploads_of(images), query, key)))

    def job(self, id: str) -> Job:
        """Return a job that was handed in before.

        Raises:
            ServiceError: there is none.
        """
        return Job(self, self._run(operations.describe(id)))

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._follow(step) if isinstance(step, Follow) else self._call(step)
                except Df2ServeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    def _call(self, call: Call) -> httpx2.Response:
        patience = Patience(self._config)
        time.sleep(call.pause_s)
        while True:
            try:
                with call.files() as files:
                    answer = self._http.request(
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
            time.sleep(pause)

    def _follow(self, follow: Follow) -> httpx2.Response:
        patience, headers = Patience(self._config), dict[str, str]()
        while True:
            try:
                with self._http.stream("GET", follow.path, headers=headers) as answer:
                    if not answer.is_success:
                        answer.read()
                    pause = patience.after_answer(answer)
                    if pause is None:
                        for event in httpx2.EventSource(answer):
                            patience.renew()
                            headers["Last-Event-ID"] = event.id
                            if follow.is_last(event):
                                return httpx2.Response(200, content=event.data)
                        pause = patience.after_loss(httpx2.ReadError("the events stopped"))
            except httpx2.TransportError as error:
                pause = patience.after_loss(error)
            time.sleep(pause)


class Job:
    """Images that a service predicts when it has time."""

    def __init__(self, client: Client, info: JobInfo) -> None:
        """Name the job of a client."""
        self._client = client
        self.info = info
        """The job as it was when it was last asked for."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.info.state})"

    @property
    def id(self) -> str:
        """Name of the job, for :meth:`Client.job`."""
        return self.info.id

    def refresh(self) -> JobInfo:
        """Ask how the job is."""
        self.info = self._client._run(operations.describe(self.id))
        return self.info

    def wait(self, listener: Listener | None = None) -> JobInfo:
        """Wait for the end of the job, also over lost connections.

        Args:
            listener: called with the job after every change.
        """
        self.info = self._client._run(operations.wait(self.id, listener))
        return self.info

    def results(self) -> Iterator[JobOutcome]:
        """Fetch what there is, image by image; those that failed have an error instead."""
        for item in self._client._run(operations.results(self.id)).items:
            if item.state in ("successful", "failed"):
                yield self._client._run(operations.outcome(self.id, item))

    def ranking(self) -> Ranking:
        """List the images by decreasing U.

        Raises:
            ServiceError: none has a result yet.
        """
        return self._client._run(operations.ranking(self.id))

    def cancel(self) -> JobInfo:
        """Stop the job before its next batch of tiles; one that has ended stays as it is."""
        self.info = self._client._run(operations.cancel(self.id))
        return self.info
