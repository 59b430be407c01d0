"""The part of an evaluation that a report shows: predictions beside experts."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from df2serve.artifact.manifest import ExpertRange
from df2serve.config import describe_validation_error
from df2serve.errors import DecodeError, InputError, SourceNotFoundError
from df2serve.writers.records import RunInfo

__all__ = ["EvaluatedImage", "EvaluationFacts", "ExpertSpan", "read_evaluation"]

_CONTENT = "evaluation.json"


class _Part(BaseModel):
    """What is read of a larger object."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EvaluatedImage(_Part):
    """Quality of one prediction."""

    file: str
    image_sha256: str
    dice: float | None
    """Mean over the classes that occur."""


class ExpertSpan(_Part):
    """One prediction among the experts, by one metric."""

    file: str
    metric: str
    reference: str
    score: float
    worst: float
    mean: float
    best: float


class EvaluationFacts(_Part):
    """The content of ``evaluation.json``, as far as it is shown."""

    ensemble_id: str | None
    images: tuple[EvaluatedImage, ...]
    relative: tuple[ExpertSpan, ...]
    expert_ranges: tuple[ExpertRange, ...]

    def spans(self, metric: str) -> dict[str, ExpertSpan]:
        """Return spans by file; experts are compared with the truth that predictions are."""
        found = (row for row in self.relative if row.metric == metric)
        return {row.file: row for row in found if row.reference == "estimate"}


def read_evaluation(folder: Path, run: RunInfo) -> EvaluationFacts:
    """Read an evaluation of the ensemble of a run.

    Raises:
        SourceNotFoundError: the folder holds no evaluation.
        DecodeError: it is damaged.
        InputError: it is one of another ensemble.
    """
    path = folder / _CONTENT
    try:
        facts = EvaluationFacts.model_validate_json(path.read_bytes())
    except OSError as error:
        message = (
            f"{folder} holds no evaluation; give a folder that 'df2serve evaluate' has written"
        )
        raise SourceNotFoundError(message) from error
    except ValidationError as error:
        raise DecodeError(describe_validation_error(str(path), error)) from error
    if facts.ensemble_id != run.ensemble_id:
        message = (
            f"{folder} evaluates the ensemble {facts.ensemble_id}, the results are of "
            f"{run.ensemble_id}; give an evaluation of the same ensemble"
        )
        raise InputError(message)
    return facts
