"""What a report says of each image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from df2serve.config import ReviewConfig
from df2serve.errors import SourceNotFoundError
from df2serve.writers.records import Record, RunInfo
from df2serve.writers.report._evaluation import EvaluationFacts
from df2serve.writers.report._references import References
from df2serve.writers.report._words import SCORE_NAMES, Place, reasons, risk_scores, sentence
from df2serve.writers.review import review

__all__ = ["Entry", "Quality", "ScoreFact", "entries_of"]

_OBJECTS = 100
"""Objects of an image that are listed, the most doubtful ones."""
_OBJECT_COLUMNS = (
    "label",
    "class",
    "area_px",
    "u",
    "probability",
    "top",
    "left",
    "bottom",
    "right",
)


@dataclass(frozen=True)
class ScoreFact:
    """A score of an image."""

    title: str
    meaning: str
    value: float
    place: str
    """Among the references, empty without any."""


@dataclass(frozen=True)
class Quality:
    """How good a prediction is, where the truth is known."""

    dice: float
    worst: float | None
    """Dice of the worst expert, absent without experts."""
    best: float | None


@dataclass(frozen=True)
class Entry:
    """An image on the review list."""

    rank: int
    name: str
    u: float | None
    needs_review: bool | None
    reasons: tuple[str, ...]
    scores: tuple[ScoreFact, ...]
    shares: tuple[tuple[str, float], ...]
    """Name and share of each class, the background left out."""
    objects: tuple[tuple[str, ...], ...]
    """The most doubtful objects; columns are ``label``, ``class``, ``area_px``, ``u``,
    ``probability``, ``top``, ``left``, ``bottom``, ``right``."""
    quality: Quality | None
    record: Record

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes that were found."""
        return tuple(name for name, share in self.shares if share)

    def for_script(self) -> dict[str, Any]:
        """Return what the page's script needs, as JSON."""
        record = self.record
        provenance = record.provenance
        size = provenance.pixel_size_um
        return {
            "rank": self.rank,
            "name": self.name,
            "u": self.u,
            "reasons": self.reasons,
            "scores": [asdict(fact) for fact in self.scores],
            "shares": self.shares,
            "objects": self.objects,
            "counted": record.instances and record.instances.kept,
            "shape": provenance.image_shape,
            "quality": self.quality and asdict(self.quality),
            "files": {kind: file.path for kind, file in record.files.items()},
            "facts": {
                "image": provenance.source,
                "sha256": provenance.source_sha256 or "unknown",
                "channels, rows, columns": " x ".join(map(str, provenance.image_shape)),
                "type": provenance.image_dtype,
                "pixel size": f"{size.y_um:g} x {size.x_um:g} um" if size else "unknown",
                "computed": f"{provenance.created}, {record.seconds:.1f} s, df2serve "
                f"{provenance.df2serve_version}, {provenance.runner.backend} on "
                f"{provenance.runner.device} in {provenance.runner.precision}",
            },
        }


def entries_of(
    folder: Path,
    records: Sequence[Record],
    run: RunInfo,
    *,
    references: References,
    evaluation: EvaluationFacts | None,
) -> Iterator[Entry]:
    """Yield the review list, the most doubtful image first.

    Raises:
        SourceNotFoundError: a table of objects is missing.
    """
    quality_of = _qualities(evaluation) if evaluation else {}
    threshold = run.threshold.value if run.threshold else None
    for place in review(records, run, config=ReviewConfig(), threshold=threshold).places:
        record = place.record
        scores = record.scores
        found = risk_scores(scores)
        sha256 = record.provenance.source_sha256
        places = {
            name: references.place(name, value, sha256=sha256) for name, value in found.items()
        }
        yield Entry(
            rank=place.rank,
            name=record.name,
            u=scores.u,
            needs_review=place.needs_review,
            reasons=(*reasons(record, run, places.get("u")), *map(sentence, place.reasons)),
            scores=tuple(_fact(name, value, places[name]) for name, value in found.items()),
            shares=tuple(
                (item.name, share)
                for item, share in zip(run.classes[1:], scores.class_fractions[1:], strict=False)
            ),
            objects=tuple(_objects(folder, record)),
            quality=quality_of.get(sha256 or ""),
            record=record,
        )


def _fact(name: str, value: float, place: Place | None) -> ScoreFact:
    title = SCORE_NAMES[name]
    text = f"more than {place.text}" if place else ""
    return ScoreFact(title=title.title, meaning=title.meaning, value=value, place=text)


def _qualities(evaluation: EvaluationFacts) -> Mapping[str, Quality]:
    """Return qualities by the hash of the image."""
    spans = evaluation.spans("dice")
    return {
        image.image_sha256: Quality(
            dice=image.dice,
            worst=spans[image.file].worst if image.file in spans else None,
            best=spans[image.file].best if image.file in spans else None,
        )
        for image in evaluation.images
        if image.dice is not None
    }


def _objects(folder: Path, record: Record) -> list[tuple[str, ...]]:
    """Return the most doubtful objects of an image, in the text of their table."""
    if "instances" not in record.files:
        return []
    path = folder / record.files["instances"].path
    try:
        with path.open(encoding="utf-8", newline="") as table:
            rows = [tuple(row[name] for name in _OBJECT_COLUMNS) for row in csv.DictReader(table)]
    except (OSError, KeyError) as error:
        message = f"cannot read {path}; 'df2serve predict --resume' makes what is missing"
        raise SourceNotFoundError(message) from error
    doubt = _OBJECT_COLUMNS.index("u")
    return sorted(rows, key=lambda row: -float(row[doubt] or 0))[:_OBJECTS]
