"""The folder of an evaluation: tables, figures, masks and ``evaluation.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from df2serve.config import describe_validation_error
from df2serve.errors import DecodeError, SourceNotFoundError
from df2serve_training._evaluation_rows import Evaluation
from df2serve_training._figures import draw_figures
from df2serve_training._gt_files import write_tables

__all__ = ["read_evaluation", "write_evaluation"]

_CONTENT = "evaluation.json"


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write all but the masks into a folder that exists."""
    write_tables(
        folder,
        "evaluation",
        {
            "summary": evaluation.summary,
            "images": evaluation.images,
            "classes": evaluation.classes,
            "expert_ranges": evaluation.expert_ranges,
            "relative": evaluation.relative,
            "experts": evaluation.experts,
            "correlations": evaluation.correlations,
            "uncertainty": evaluation.uncertainty,
        },
    )
    draw_figures(evaluation, folder)
    content = evaluation.model_dump_json(indent=2) + "\n"
    (folder / _CONTENT).write_text(content, encoding="utf-8")


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read what an evaluation found.

    Raises:
        SourceNotFoundError: the folder holds no evaluation.
        DecodeError: it is damaged, or of another version.
    """
    path = Path(folder) / _CONTENT
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        message = (
            f"{folder} holds no evaluation; give a folder that 'df2serve evaluate' has written"
        )
        raise SourceNotFoundError(message) from error
    except ValidationError as error:
        raise DecodeError(describe_validation_error(str(path), error)) from error
