"""What a client gets: results of images, of jobs, and their order of review."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from df2serve.errors import Df2ServeError, ServiceError
from df2serve.service.schemas import Quality, ResultInfo, Schema

if TYPE_CHECKING:
    from df2serve.types import LabelMap, MaskArray, PixelMap, ProbMap

__all__ = ["JobOutcome", "RankedRow", "Ranking", "Result", "parse", "result_of"]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, eq=False)
class Result:
    """The prediction of one image."""

    mask: MaskArray
    """Most probable class (eq. 2), axes (Y, X)."""
    uncertainty: PixelMap
    """Total uncertainty (eq. 3-4), axes (Y, X)."""
    probs: ProbMap | None
    """Mean class probabilities (eq. 1), axes (K, Y, X), if they were asked for."""
    labels: LabelMap | None
    """Objects, 0 = none, axes (Y, X), if they were asked for."""
    info: ResultInfo
    """Everything but pixels: model, settings, hashes, times."""

    @property
    def scores(self) -> Quality:
        """How much the result is to be doubted."""
        return self.info.quality

    @property
    def needs_review(self) -> bool | None:
        """Whether U is at or above the threshold, or undefined; None without a threshold."""
        return self.info.quality.needs_review


@dataclass(frozen=True)
class JobOutcome:
    """What became of one image of a job: a result or the error that it gave."""

    source: str
    """Name of the image."""
    result: Result | None
    error: Df2ServeError | None


class RankedRow(Schema):
    """An image in the review list."""

    rank: int
    """Counted from 1, the most doubtful image first."""
    name: str
    """Position in the job, counted from 0, and name."""
    source: str
    u: float | None
    needs_review: bool | None


class Ranking(Schema):
    """The images of a job by decreasing U."""

    threshold: float | None
    """U_min; absent where the ensemble carries none."""
    images: tuple[RankedRow, ...]


def parse(kind: type[M], content: bytes | str) -> M:
    """Return an answer as what it is; fields of newer services are left out.

    Raises:
        ServiceError: it is something else.
    """
    try:
        return kind.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        message = f"got an answer that is no {kind.__name__}; is this the address of a df2serve?"
        raise ServiceError(message) from error


def result_of(content: bytes) -> Result:
    """Return the result in a zip file.

    Raises:
        ServiceError: it is none.
    """
    import numpy as np
    import tifffile

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {}
            for name in archive.namelist():
                output, _, suffix = name.partition(".")
                if suffix == "tif":
                    pixels = tifffile.imread(io.BytesIO(archive.read(name)))
                    native = pixels.dtype.newbyteorder("=")
                    arrays[output] = np.asarray(pixels, dtype=native)
            labels = arrays.get("labels")  # stored in the smallest type
            return Result(
                mask=arrays["mask"],
                uncertainty=arrays["uncertainty"],
                probs=arrays.get("probabilities"),
                labels=None if labels is None else labels.astype(np.int32),
                info=parse(ResultInfo, archive.read("result.json")),
            )
    except (zipfile.BadZipFile, KeyError, tifffile.TiffFileError) as error:
        message = f"the result cannot be read: {error}; ask for it again"
        raise ServiceError(message) from error
